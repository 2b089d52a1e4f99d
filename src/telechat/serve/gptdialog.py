"""The original service's routes, `/telechat/gptDialog/v2` (streamed text) and `/v4` (JSON), field by field.

Clients of the original change only the address. Errors therefore come in its own envelope with HTTP 200,
checked in its order: required field, roles, ranges, then everything else. Types are as strict as there:
`temperature: 1` is an error, an explicit null means "not given". A prompt that does not fit is refused, where
the original cut it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from telechat.engine.sampling_params import SamplingParams
from telechat.errors import ContextLengthError, TelechatError
from telechat.serve.body import JsonError, content_type, is_json, parse_json, read_body
from telechat.serve.connection import GeneratedResponse, run_while_connected
from telechat.serve.contract import DeltaStream
from telechat.serve.errors import ApiError
from telechat.serve.openapi import json_body
from telechat.serve.service import Service
from telechat.serve.visit import Visit

logger = logging.getLogger(__name__)

MISSING = ("10301", "服务必填参数缺失")
BAD_DIALOG = ("10904", "服务请求参数dialog错误")
BAD_RANGE = ("10305", "请求参数范围错误")
FAILED = ("10903", "服务执行失败")
REASONS = (MISSING, BAD_DIALOG, BAD_RANGE, FAILED)


@dataclass(frozen=True)
class Parameter:
    """A field beside `dialog`: its exact type, its default and its range.

    Attributes:
        above: the value must be greater.
        below: the value must be smaller.
        at_most: the value may be equal or smaller.
    """

    name: str
    kind: type[bool] | type[int] | type[float]
    default: Any
    above: float | None = None
    below: float | None = None
    at_most: float | None = None

    def accepts(self, value: Any) -> bool:
        """Whether type and range are right; NaN is in no range. True is no number."""
        if not isinstance(value, self.kind) or isinstance(value, bool) != (self.kind is bool):
            return False
        return (
            (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def schema(self) -> dict[str, Any]:
        """JSON schema of the field."""
        name = {bool: "boolean", int: "integer", float: "number"}[self.kind]
        limits = {"exclusiveMinimum": self.above, "exclusiveMaximum": self.below, "maximum": self.at_most}
        given = {key: value for key, value in limits.items() if value is not None}
        return {"anyOf": [{"type": name, **given}, {"type": "null"}], "default": self.default}


PARAMETERS = (
    Parameter("do_sample", bool, True),
    Parameter("max_length", int, 4096, above=0, at_most=4096),
    Parameter("top_k", int, 20, above=0, below=100),
    Parameter("top_p", float, 0.2, above=0, below=1),
    Parameter("temperature", float, 0.1, above=0, below=1),
    Parameter("repetition_penalty", float, 1.03, above=1, below=100),
)

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "title": "GptDialogRequest",
    "required": ["dialog"],
    "properties": {
        "dialog": {
            "type": "array",
            "description": "Messages of user and bot in turn, user first; the last one is the question.",
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {"role": {"enum": ["user", "bot"]}, "content": {"type": "string"}},
            },
        },
        **{parameter.name: parameter.schema() for parameter in PARAMETERS},
    },
}


class DialogError(Exception):
    """An answer in the original's error envelope."""

    def __init__(self, reason: tuple[str, str]) -> None:
        super().__init__(reason[1])
        self.code, self.message = reason

    def response(self) -> Response:
        """HTTP 200, as the original."""
        return JSONResponse(
            {"seqid": "", "code": self.code, "message": self.message, "flag": "0", "data": "执行失败"}
        )


def gptdialog_router(service: Service) -> APIRouter:
    """The two original routes."""
    router = APIRouter(tags=["TeleChat"])
    body = json_body("GptDialogRequest")
    errors = "Errors come with HTTP 200: " + ", ".join(f"{code} {text}" for code, text in REASONS) + "."

    @router.post(
        "/telechat/gptDialog/v2",
        summary="Answer a dialog as streamed text",
        description=errors,
        openapi_extra=body,
    )
    async def stream_answer(request: Request) -> Response:
        return await _in_envelope(service, request, _streamed)

    @router.post(
        "/telechat/gptDialog/v4",
        summary="Answer a dialog in one JSON object",
        description=errors,
        openapi_extra=body,
    )
    async def whole_answer(request: Request) -> Response:
        return await _in_envelope(service, request, _whole)

    return router


Answer = Callable[[Service, Request, DeltaStream, ExitStack], Awaitable[Response]]


async def _in_envelope(service: Service, request: Request, answer: Answer) -> Response:
    """Run `answer`; what goes wrong before the answer starts becomes an error envelope."""
    kind = content_type(request)
    if kind and not is_json(kind):
        return _unprocessable("dict_type", "Input should be a valid dictionary, sent as application/json")
    raw = await read_body(request, service.settings.max_body_bytes)
    try:
        value = parse_json(raw, allow_nan=True)
    except JsonError as error:
        return _unprocessable("json_invalid", f"JSON decode error: {error}")
    if not isinstance(value, dict):
        return _unprocessable("dict_type", "Input should be a valid dictionary")
    try:
        with ExitStack() as stack:
            visit = service.admit(request)
            stack.callback(visit.close)
            return await answer(service, request, await _start(service, visit, value), stack)
    except DialogError as error:
        return error.response()
    except ContextLengthError as error:
        logger.info("refused: %s", error)
        return DialogError(BAD_RANGE).response()
    except TelechatError as error:
        logger.warning("failed: %s", error)
        return DialogError(FAILED).response()
    except (ApiError, ClientDisconnect):
        raise
    except Exception:
        # The boundary of the process: the original reports everything else in this way.
        logger.exception("a dialog failed")
        return DialogError(FAILED).response()


def _unprocessable(kind: str, message: str) -> Response:
    """The original answers a body that is no object with FastAPI's 422; ours also has the usual error."""
    detail = [{"type": kind, "loc": ["body"], "msg": message}]
    return JSONResponse({"detail": detail, **ApiError(422, message).body()}, status_code=422)


async def _start(service: Service, visit: Visit, value: Mapping[str, Any]) -> DeltaStream:
    dialog = _check_dialog(value)
    chosen = _check_parameters(value)
    if not dialog:
        raise DialogError(FAILED)
    # The last message is the question, whatever its role.
    messages = [*dialog[:-1], {"role": "user", "content": dialog[-1]["content"]}]
    max_length = chosen.pop("max_length")
    if not chosen.pop("do_sample"):
        chosen["temperature"] = 0.0
    prompt_ids = await service.encode(messages, limit=max_length)
    params = SamplingParams(max_total_tokens=max_length, **chosen)
    return visit.stream(prompt_ids, params)


def _check_dialog(value: Mapping[str, Any]) -> list[dict[str, str]]:
    dialog = value.get("dialog")
    if dialog is None:
        raise DialogError(MISSING)
    if not isinstance(dialog, list):
        raise DialogError(BAD_DIALOG)
    for position, message in enumerate(dialog):
        role = "bot" if position % 2 else "user"
        if not isinstance(message, dict) or message.get("role") != role:
            raise DialogError(BAD_DIALOG)
        if not isinstance(message.get("content"), str):
            raise DialogError(BAD_DIALOG)
    return [{"role": message["role"], "content": message["content"]} for message in dialog]


def _check_parameters(value: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for parameter in PARAMETERS:
        given = value.get(parameter.name)
        if given is not None and not parameter.accepts(given):
            raise DialogError(BAD_RANGE)
        chosen[parameter.name] = parameter.default if given is None else given
    return chosen


async def _whole(service: Service, request: Request, stream: DeltaStream, stack: ExitStack) -> Response:
    async def read() -> str:
        async with aclosing(service.deltas(stream)) as deltas:
            return "".join([delta.text async for delta in deltas])

    text = await run_while_connected(request, read())
    return JSONResponse({"role": "bot", "content": text})


async def _streamed(service: Service, request: Request, stream: DeltaStream, stack: ExitStack) -> Response:
    pieces = _texts(service, stream)
    # The first piece decides between an answer and an error envelope.
    first = await run_while_connected(request, anext(pieces, b""))
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        # The type is the original's; what the model writes must not run as a page.
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
    }
    return GeneratedResponse(_resume(first, pieces), headers=headers, on_close=stack.pop_all().close)


async def _texts(service: Service, stream: DeltaStream) -> AsyncGenerator[bytes, None]:
    async with aclosing(service.deltas(stream)) as deltas:
        async for delta in deltas:
            if delta.text:
                yield delta.text.encode("utf-8")


async def _resume(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        if first:
            yield first
        async for piece in rest:
            yield piece
