"""Connections that stand still are given up, whatever they wait for; others are not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.unit.serve.asgi_calls import until
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.serve.admission import Admission
from telechat.serve.app import create_app
from telechat.serve.protocol import Patience
from telechat.serve.server import Server, bind
from telechat.serve.settings import ServeSettings

pytestmark = pytest.mark.timeout(60)

SHORT = Patience(head=0.4, stalled=0.4)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def request(question: str, *, stream: bool = False) -> bytes:
    """A whole request."""
    body = json.dumps({"messages": [{"role": "user", "content": question}], "stream": stream}).encode()
    return HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def serving(
    engine: FakeEngine, patience: Patience = SHORT
) -> AsyncIterator[tuple[int, Server, Admission]]:
    """A real server in this event loop; gives its port."""
    settings = ServeSettings(port=0, shutdown_seconds=1)
    admission = Admission(10)
    with bind(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
        app = create_app(engine, settings, admission=admission)
        server = Server(app, settings, admission, port, patience)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        try:
            yield port, server, admission
        finally:
            server.should_exit = True
            await task


def num_connections(server: Server) -> int:
    return len(server.server_state.connections)


@pytest.mark.parametrize("sent", [b"", b"P", HEAD], ids=["nothing", "a byte", "half the headers"])
def test_a_request_that_never_comes(sent: bytes) -> None:
    async def scenario() -> None:
        async with serving(FakeEngine()) as (port, server, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(1), 20)
            await until(lambda: num_connections(server) == 0)
            writer.close()

    asyncio.run(scenario())


def test_a_second_request_that_stops_half_way() -> None:
    async def scenario() -> None:
        async with serving(FakeEngine()) as (port, server, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("hi"))
            await reader.readuntil(b'"total_tokens"')
            # Resting between requests is no fault.
            await asyncio.sleep(1)
            assert num_connections(server) == 1
            writer.write(HEAD)
            await until(lambda: num_connections(server) == 0)
            writer.close()

    asyncio.run(scenario())


def test_a_long_wait_for_an_answer_is_no_fault() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        engine.scripts["slow"] = ("a", 1.5, "b")
        async with serving(engine) as (port, _, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("slow"))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            assert head.startswith(b"HTTP/1.1 200")
            writer.close()

    asyncio.run(scenario())


def connect_with_small_buffer(port: int) -> socket.socket:
    """A client that can take little before it reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    return client


def test_a_client_that_never_reads_is_given_up_and_its_work_ends() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        # More than all buffers hold, and then work that would never end.
        engine.scripts["long"] = ("x" * 1_000_000,) * 20 + (1000.0,)
        async with serving(engine) as (port, server, admission):
            with connect_with_small_buffer(port) as client:
                client.sendall(request("long", stream=True))
                await until(lambda: engine.num_open == 1)
                await until(lambda: num_connections(server) == 0)
                await until(lambda: engine.num_open == 0 and admission.num_taken == 0)

    asyncio.run(scenario())


def test_a_slow_reader_gets_everything() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        engine.scripts["long"] = ("x" * 100_000,) * 20
        async with serving(engine, Patience(head=5, stalled=5)) as (port, _, _):
            client = connect_with_small_buffer(port)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, request("long", stream=True))
            received = b""
            while b"[DONE]" not in received[-100:]:
                piece = await loop.sock_recv(client, 65536)
                assert piece
                received += piece
                await asyncio.sleep(0.002)
            client.close()
            assert received.count(b"x") >= 2_000_000

    asyncio.run(scenario())


def test_what_is_no_http_gets_our_error() -> None:
    async def scenario() -> None:
        async with serving(FakeEngine()) as (port, _, _):
            for sent in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / FTP/1.1\r\n\r\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent + b"\r\n\r\n")
                head, _, body = (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 400")
                assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
                writer.close()

    asyncio.run(scenario())


def test_silence_is_probed() -> None:
    """The system itself asks after clients that say nothing."""

    async def scenario() -> None:
        async with serving(FakeEngine()) as (port, server, _):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            await until(lambda: num_connections(server) == 1)
            (connection,) = server.server_state.connections
            handle = connection.transport.get_extra_info("socket")  # type: ignore[union-attr]
            assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            writer.close()

    asyncio.run(scenario())
