"""What is noted about one HTTP request while it is answered: for metrics, the access log and limits.

A plain record, made when the request arrives and carried in the ASGI scope. It knows neither routes nor
engines; who fills a field is said beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from telechat.serve.limits import Grant

# Where the record lies in an ASGI scope.
_SCOPE_KEY = "telechat.record"


@dataclass
class Record:
    """One request.

    Attributes:
        id: names the request in answers and logs (set by `observer`).
        started: when it arrived, in seconds of `time.monotonic`.
        started_at: the same in seconds since 1970.
        grant: whose key it carries; None where no key is asked for (set by `auth`).
        status: HTTP status of the answer; 0 before it begins (set by `observer`).
        num_prompt_tokens, num_completion_tokens: counted by `visit`.
        first_token_seconds: from arrival to the first token of an answer, None before it.
        is_abandoned: the client went away before its answer was complete.
        error: code of what ended its answer after it was let in, None if nothing did.
        adapter: the one that answers it, if any (set by `visit`).
        was_admitted: it got a place, so it reached the model.
        prompts: give the texts of its prompts, only where they are to be logged.
    """

    method: str
    path: str
    client: str
    id: str = ""
    started: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)
    grant: Grant | None = None
    status: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    first_token_seconds: float | None = None
    is_abandoned: bool = False
    error: str | None = None
    adapter: str | None = None
    was_admitted: bool = False
    prompts: list[Callable[[], str]] = field(default_factory=list)


def record_of(scope: MutableMapping[str, Any]) -> Record:
    """The record of the request with this ASGI scope; made when there is none yet."""
    record = scope.get(_SCOPE_KEY)
    if record is None:
        client = scope.get("client")
        record = Record(
            method=scope["method"], path=scope["path"], client=client[0] if client is not None else ""
        )
        scope[_SCOPE_KEY] = record
    assert isinstance(record, Record)
    return record
