"""Connections that do not last for ever: those that never send a request, or never read their answer.

A client that is gone without a word, or that reads nothing, would otherwise hold memory and a file handle
until the system notices, which may be never. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from telechat.serve.errors import ApiError


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a connection may stand still, in seconds.

    Attributes:
        head: from the connection, or from a request's first byte, to the end of the request's headers.
        stalled: how long a full send buffer may stay full.
        probe: silence after which the system asks whether the client is still there.
    """

    head: float = 60.0
    stalled: float = 60.0
    probe: int = 60


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with limits of patience, and with our body for requests that are no HTTP.

    Args:
        patience: the limits.
        arguments: what uvicorn hands to its protocol.
    """

    def __init__(self, *, patience: Patience, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._patience = patience
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _probe_silence(transport, self._patience.probe)
        self._head_timer = self.loop.call_later(self._patience.head, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_waiting = self.cycle is None or self.cycle.response_complete
        if not is_waiting:
            self._stop_head_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self._patience.head, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._patience.stalled, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Closing waits for the client to read the rest of its answer; one that has not by now never will."""
        if self.transport.get_write_buffer_size():
            self._give_up()
        else:
            super().timeout_keep_alive_handler()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _give_up(self) -> None:
        """`connection_lost` follows, and with it the end of the work that was done for the client."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered in the same form as every other mistake."""
        body = json.dumps(ApiError(400, msg).body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _probe_silence(transport: asyncio.Transport, seconds: int) -> None:
    """Let the system find out about clients that vanished without closing the connection."""
    handle = transport.get_extra_info("socket")
    if handle is None:
        return
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Not every system has these; without them its own, longer times hold.
    for name, value in (("TCP_KEEPIDLE", seconds), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
