"""The server under test: requests in, answers and streams out, nothing repaired on the way.

Streams are read byte by byte as they were sent, because clients trip over bytes. Knows the routes' addresses;
what an answer should look like is the checks' business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx

from telechat.conformance.check import FailedError, SkippedError, expect, pick, shown
from telechat.errors import TelechatError

SECONDS = 120.0
QUESTION = "What is soy sauce made of?"
MAX_TOKENS = 16
DONE = "[DONE]"
_ABSENT = (404, 405, 501)


@dataclass(frozen=True)
class Stream:
    """A stream as it was sent.

    Attributes:
        headers: of the answer.
        raw: the whole body.
        events: the data of each event that is JSON, in order.
        is_done: the last event was [DONE].
    """

    headers: httpx.Headers
    raw: bytes
    events: list[Any]
    is_done: bool


class Api:
    """A server that claims to speak OpenAI's protocol.

    Args:
        url: its address, with or without `/v1`.
        key: API key, None where none is asked for.
        model: name of the model; None takes the first one listed.
        transport: instead of the network (tests).
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        model: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        self.url = base
        self.key = key
        self._model = model
        # A proxy is for other machines.
        is_here = urlsplit(base).hostname in ("localhost", "127.0.0.1", "::1")
        self._client = httpx.Client(
            base_url=base, timeout=SECONDS, trust_env=not is_here, transport=transport, follow_redirects=True
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def reach(self) -> None:
        """Make sure that something answers at all.

        Raises:
            TelechatError: nothing does.
        """
        try:
            self.get("/v1/models")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise TelechatError(
                f"Nothing answers at {self.url}: {str(error).rstrip('.')}.",
                hint="Give the address of a running server, such as http://127.0.0.1:8070.",
            ) from error

    @cached_property
    def model(self) -> str:
        """Name of the model that is asked."""
        if self._model is not None:
            return self._model
        name = pick(self.json(self.get("/v1/models")), "data", 0, "id")
        expect(isinstance(name, str), f"the id of a model is {shown(name)}")
        return str(name)

    @property
    def known_model(self) -> str | None:
        """Name of the model that was asked; None when nothing has been asked and none was given."""
        asked: str | None = self.__dict__.get("model")
        return asked or self._model

    @property
    def card(self) -> dict[str, Any]:
        """The model's entry in the list; empty when it is not there."""
        models = pick(self.json(self.get("/v1/models")), "data")
        found = [entry for entry in models if isinstance(entry, dict) and entry.get("id") == self.model]
        return dict(found[0]) if found else {}

    def headers(self, key: str | None = None) -> dict[str, str]:
        """Headers of a request, with another key where one is given."""
        used = self.key if key is None else key
        return {"Authorization": f"Bearer {used}"} if used else {}

    def get(self, path: str, *, key: str | None = None) -> httpx.Response:
        """GET; any status is an answer."""
        return self._client.get(path, headers=self.headers(key))

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """POST JSON, or bytes that claim to be JSON; any status is an answer."""
        sent = content if content is not None else json.dumps(body).encode("utf-8")
        used = self.headers() if headers is None else dict(headers)
        return self._client.post(path, content=sent, headers={**used, "Content-Type": "application/json"})

    def json(self, answer: httpx.Response) -> Any:
        """The JSON of a 200 answer."""
        expect(answer.status_code == 200, f"HTTP {answer.status_code}: {shown(answer.text)}")
        return parsed(answer)

    def body(self, **fields: Any) -> dict[str, Any]:
        """A short, greedy chat request; `fields` win, and one that is ... is left out."""
        plain = {
            "model": self.model,
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
        }
        return {name: value for name, value in {**plain, **fields}.items() if value is not ...}

    def chat(self, **fields: Any) -> Any:
        """The answer to a chat request, which must be 200."""
        return self.json(self.post("/v1/chat/completions", self.body(**fields)))

    def refused(self, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
        """The answer to a chat request that must not be 200."""
        answer = self.post(path, self.body(**fields))
        expect(answer.status_code != 200, "it was answered with 200")
        return answer

    def stream(self, path: str = "/v1/chat/completions", body: Any = None, **fields: Any) -> Stream:
        """A stream, read to its end."""
        sent = self.body(**{"stream": True, **fields}) if body is None else body
        answer = self.post(path, sent)
        expect(answer.status_code == 200, f"HTTP {answer.status_code}: {shown(answer.text)}")
        return read_stream(answer.headers, answer.content)

    def optional(self, path: str, body: Any) -> httpx.Response:
        """The answer of a route that a server may lack; the check is skipped where it does."""
        answer = self.post(path, body)
        if answer.status_code in _ABSENT and "model" not in answer.text.lower():
            raise SkippedError(f"the server has no {path}")
        return answer

    def open_and_leave(self) -> None:
        """Begin a stream and go away after its first bytes."""
        body = json.dumps(self.body(stream=True, max_tokens=64)).encode("utf-8")
        headers = {**self.headers(), "Content-Type": "application/json"}
        with self._client.stream("POST", "/v1/chat/completions", content=body, headers=headers) as answer:
            expect(answer.status_code == 200, f"HTTP {answer.status_code}")
            next(answer.iter_raw(), b"")

    @cached_property
    def plain(self) -> Any:
        """The answer to the plain request, asked once."""
        return self.chat()

    @cached_property
    def plain_stream(self) -> Stream:
        """The same as a stream."""
        return self.stream()


def parsed(answer: httpx.Response) -> Any:
    """The JSON of an answer."""
    try:
        return json.loads(answer.content)
    except ValueError as error:
        raise FailedError(f"the answer is not JSON: {shown(answer.text)}") from error


def read_stream(headers: httpx.Headers, raw: bytes) -> Stream:
    """The events of a stream. Separators other than those of the standard are left to `stream-framing`."""
    events: list[Any] = []
    is_done = False
    text = raw.decode("utf-8", "replace").replace("\r\n", "\n")
    for block in text.split("\n\n"):
        data = [line[5:].lstrip(" ") for line in block.split("\n") if line.startswith("data:")]
        if not data:
            continue
        is_done = data == [DONE]
        if not is_done:
            try:
                events.append(json.loads("\n".join(data)))
            except ValueError as error:
                raise FailedError(f"an event is not JSON: {shown(block)}") from error
    return Stream(headers, raw, events, is_done)


def text_of(events: list[Any], index: int = 0) -> str:
    """The text of one answer of a chat stream."""
    return "".join(
        choice.get("delta", {}).get("content") or ""
        for event in events
        for choice in event.get("choices", ())
        if choice.get("index") == index
    )
