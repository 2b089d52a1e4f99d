"""Many streaming clients at little cost: HTTP/1.1 over asyncio's own streams, read as bytes.

What a stream says is taken apart only when it is over, so that measuring disturbs what is measured as little
as may be. Speaks to any server with OpenAI's chat route. Standard library only.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_CONTENT = re.compile(rb'"content": ?("(?:[^"\\]|\\.)*")')
_FINISH = re.compile(rb'"finish_reason": ?"')
# An answer that takes longer counts as failed.
ANSWER_SECONDS = 120.0
_USAGE = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclass(frozen=True)
class Answer:
    """One stream, as its client saw it.

    Attributes:
        question: which of the questions it was.
        text: of all pieces together.
        num_tokens: as the server counts them; of pieces where it does not say.
        first_seconds: from sending the request to the first piece with text.
        seconds: from sending the request to the end.
        error: what was wrong; "" when nothing was.
    """

    question: int
    text: str
    num_tokens: int
    first_seconds: float
    seconds: float
    error: str = ""


class Client:
    """One client that asks one question after the other, over one connection where the server allows it.

    Args:
        url: of the server.
        fields: of each request, besides `messages` and `stream`.
    """

    def __init__(self, url: str, fields: dict[str, Any]) -> None:
        place = urlsplit(url)
        assert place.hostname is not None and place.port is not None
        self._host, self._port = place.hostname, place.port
        self._fields = {**fields, "stream": True, "stream_options": {"include_usage": True}}
        self._pipe: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, number: int, question: str) -> Answer:
        """Ask, and read the stream to its end."""
        body = json.dumps({**self._fields, "messages": [{"role": "user", "content": question}]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        start = time.perf_counter()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                content, first = await self._exchange(head.encode() + body)
        except (OSError, EOFError, ValueError) as error:  # a timeout is an OSError
            self.close()
            return Answer(number, "", 0, 0.0, time.perf_counter() - start, error=repr(error))
        return _read(number, content, first - start, time.perf_counter() - start)

    def close(self) -> None:
        """Close the connection."""
        if self._pipe is not None:
            self._pipe[1].close()
            self._pipe = None

    async def _exchange(self, request: bytes) -> tuple[bytes, float]:
        """The body, and when its first piece with text came."""
        if self._pipe is None:
            self._pipe = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        reader, writer = self._pipe
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise ValueError(head.split(b"\r\n")[0].decode())
        pieces: list[bytes] = []
        first = 0.0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            pieces.append((await reader.readexactly(size + 2))[:-2])
            if not first and has_text(pieces[-1]):
                first = time.perf_counter()
        await reader.readexactly(2)
        if b"connection: close" in head:
            self.close()
        return b"".join(pieces), first or time.perf_counter()


def has_text(piece: bytes) -> bool:
    """Whether events hold text of the answer: servers begin with one that is empty."""
    return any(found != b'""' for found in _CONTENT.findall(piece))


def _read(number: int, content: bytes, first_seconds: float, seconds: float) -> Answer:
    pieces = [json.loads(found) for found in _CONTENT.findall(content)]
    usage = _USAGE.findall(content)
    error = ""
    # Not every server ends with [DONE]; all say why an answer ended.
    if b'"error"' in content or not _FINISH.search(content):
        error = content[-300:].decode("utf-8", "replace")
    num_tokens = int(usage[-1]) if usage else sum(bool(piece) for piece in pieces)
    return Answer(number, "".join(pieces), num_tokens, first_seconds, seconds, error)


async def load(
    url: str,
    questions: Sequence[str],
    fields: dict[str, Any],
    *,
    num_clients: int,
    seconds: float,
    on_answer: Callable[[Answer], None] = lambda answer: None,
) -> tuple[list[Answer], float]:
    """Let clients ask without a pause for so long; running answers are read to their end.

    Returns:
        All answers, and the seconds until the last one was complete.
    """
    start = time.perf_counter()
    answers: list[Answer] = []

    async def one(client_number: int) -> None:
        client = Client(url, fields)
        turn = client_number
        while time.perf_counter() - start < seconds:
            answer = await client.ask(turn % len(questions), questions[turn % len(questions)])
            answers.append(answer)
            on_answer(answer)
            # Clients go through the questions from different places on, so that neighbours differ.
            turn += 1
        client.close()

    await asyncio.gather(*(one(number) for number in range(num_clients)))
    return answers, time.perf_counter() - start
