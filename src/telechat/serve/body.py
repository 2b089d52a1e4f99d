"""Reading request bodies: bounded, strictly JSON, and checked against a pydantic model.

Everything odd that can arrive in a body ends here as a 400 (or 413) that names the field: broken UTF-8, NaN,
numbers without end, nesting without end, half surrogate pairs. Behind this module values are plain and
finite. Knows no route.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from telechat.serve.errors import ApiError, bad_field

# Deeper than any tool schema, shallow enough for every recursive function behind us.
MAX_DEPTH = 64
# A client that sends a byte now and then must not hold its part of the memory for ever.
BODY_SECONDS = 60.0

Model = TypeVar("Model", bound=BaseModel)


class JsonError(ValueError):
    """Text that is not JSON we accept; the message says why."""


def parse_json(text: str | bytes, *, allow_nan: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: a string or UTF-8 bytes.
        allow_nan: let NaN, Infinity and numbers too large for a float through, as Python does.

    Raises:
        JsonError: not UTF-8, not JSON, nested deeper than MAX_DEPTH, half a surrogate pair, a number out of
        range.
    """
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise JsonError(f"it is nested deeper than {MAX_DEPTH} levels") from error
    except json.JSONDecodeError as error:
        raise JsonError(f"{error.msg} at character {error.pos}") from error
    except ValueError as error:
        raise JsonError("it holds a number with too many digits") from error
    _check_values(value, allow_nan=allow_nan)
    return value


def _check_values(value: Any, *, allow_nan: bool) -> None:
    """Walk level by level, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        following: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, float) and not allow_nan and not math.isfinite(item):
                raise JsonError(f"it holds {item}, which JSON does not have")
            elif isinstance(item, dict):
                following += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                following += item
        if not following:
            return
        level = following
    raise JsonError(f"it is nested deeper than {MAX_DEPTH} levels")


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise JsonError("it holds half a surrogate pair, which is no character") from error


async def read_body(request: Request, limit: int, *, seconds: float = BODY_SECONDS) -> bytes:
    """The body, never holding more than `limit` bytes of it, nor waiting longer than `seconds` for its end.

    Raises:
        ApiError: 413 when it is larger, 408 when it does not come.
        ClientDisconnect: the client went away.
    """
    declared = request.headers.get("content-length", "")
    if (declared.isdecimal() and len(declared) > 18) or (declared.isdecimal() and int(declared) > limit):
        _refuse_size(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    _refuse_size(limit)
                chunks.append(chunk)
    except TimeoutError as error:
        raise ApiError(
            408,
            f"The request body was not complete after {seconds:g} seconds.",
            code="body_timeout",
            headers={"Connection": "close"},
        ) from error
    return b"".join(chunks)


def _refuse_size(limit: int) -> NoReturn:
    # The rest of the body is not read, so the connection cannot be used again.
    raise ApiError(
        413,
        f"The request body is larger than {limit} bytes, the limit of this service.",
        code="request_too_large",
        headers={"Connection": "close"},
    )


async def read_model(request: Request, model: type[Model], limit: int) -> Model:
    """The body as `model`.

    Raises:
        ApiError: 400 that names the field, 413.
    """
    return checked(await read_json(request, limit), model)


async def read_json(request: Request, limit: int, *, needs_type: bool = True) -> Any:
    """The value of a JSON body.

    Args:
        needs_type: refuse a body that does not declare its type; old clients of other services send none.

    Raises:
        ApiError: 400, 413.
    """
    if needs_type or content_type(request):
        _check_content_type(request)
    body = await read_body(request, limit)
    try:
        return parse_json(body)
    except JsonError as error:
        raise bad_field(f"The request body cannot be read: {error}.", None) from error


def checked(value: Any, model: type[Model]) -> Model:
    """A JSON value as `model`.

    Raises:
        ApiError: 400 that names the field.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _as_bad_field(error) from error


def content_type(request: Request) -> str:
    """The declared type of the body without its parameters, in lower case; "" when there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    """Whether a declared type means JSON."""
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _check_content_type(request: Request) -> None:
    """Other types are what a web page of anybody's could send to this machine without being asked."""
    kind = content_type(request)
    if not is_json(kind):
        shown = repr(kind[:100]) if kind else "missing"
        raise bad_field(
            f"The Content-Type header is {shown}. Send the body with Content-Type: application/json.", None
        )


def _as_bad_field(error: ValidationError) -> ApiError:
    """The first problem that pydantic found, in a sentence. Values are not echoed: they may be huge."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = _dotted(problem["loc"])
    what = problem["msg"].removeprefix("Value error, ")
    if not where:
        return bad_field(f"The request body is wrong: {what}.", None)
    return bad_field(f"{where}: {what[:1].lower()}{what[1:].rstrip('.')}.", where)


def _dotted(location: Sequence[int | str]) -> str:
    return ".".join(str(part)[:100] for part in location)
