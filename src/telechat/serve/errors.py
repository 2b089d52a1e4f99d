"""Errors as HTTP answers: one body shape for every route, `{"error": {message, type, param, code}}`.

Maps our exceptions, FastAPI's and unexpected ones to the table of statuses and codes that OpenAI clients
know. It does not decide what is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from telechat.engine import EngineClosedError, EngineDiedError, QueueFullError
from telechat.errors import ContextLengthError, PromptError, RequestError, TelechatError

logger = logging.getLogger(__name__)

_CODES_BY_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class ApiError(Exception):
    """An answer other than 2xx, raised anywhere below a route.

    Args:
        status: HTTP status.
        message: what was wrong and what to do.
        kind: the body's `type`.
        code: the body's `code`; None where OpenAI has none.
        param: the field at fault.
        headers: further response headers, e.g. Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON body, also sent as an event when a stream fails half-way."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def bad_field(message: str, param: str | None) -> ApiError:
    """400: a field of the request is wrong."""
    return ApiError(400, message, param=param)


def context_too_long(message: str) -> ApiError:
    """400: the prompt does not fit the model."""
    return ApiError(400, message, param="messages", code="context_length_exceeded")


def invalid_key(message: str) -> ApiError:
    """401: no API key or a wrong one."""
    return ApiError(
        401,
        message,
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def forbidden(message: str) -> ApiError:
    """403: the key is good, but not for this."""
    return ApiError(403, message, kind="permission_error", code="forbidden")


def model_not_found(name: str, known: Sequence[str], *, param: str = "model") -> ApiError:
    """404: a model or adapter was asked for that is not among the known ones."""
    listed = ", ".join(repr(one) for one in known)
    return ApiError(
        404,
        f"The model {name[:200]!r} does not exist here; this service has {listed}.",
        code="model_not_found",
        param=param,
    )


def queue_full(message: str) -> ApiError:
    """429: as many requests as allowed are running or waiting."""
    return ApiError(
        429,
        message,
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": "1"},
    )


def rate_limited(message: str, *, seconds: int | None) -> ApiError:
    """429: a key has used up what it may; `seconds` until it is worth trying again, None if it never is."""
    headers = {"x-should-retry": "false"} if seconds is None else {"Retry-After": str(seconds)}
    return ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", headers=headers)


def timed_out(limit: float) -> ApiError:
    """504: the answer took longer than the service allows. Asking again would take as long."""
    return ApiError(
        504,
        f"The answer was not complete after {limit:g} seconds, the limit of this service. "
        "Ask for a shorter one.",
        kind="server_error",
        code="timeout",
        headers={"x-should-retry": "false"},
    )


def unavailable(message: str) -> ApiError:
    """503: loading or shutting down."""
    return ApiError(503, message, kind="server_error", code="unavailable", headers={"Retry-After": "5"})


def internal_error() -> ApiError:
    """500: our fault; the details are in the log, not in the answer."""
    return ApiError(
        500,
        "The service failed to answer; its log has the reason.",
        kind="server_error",
        code="internal_error",
    )


def as_api_error(error: TelechatError) -> ApiError:
    """What a client should see of one of our exceptions; one that is our fault is logged."""
    known = _as_known(error)
    if known is None:
        logger.error("request failed: %s", error, exc_info=error)
    return known or internal_error()


def error_code(error: TelechatError | ApiError) -> str:
    """A word for logs."""
    known = error if isinstance(error, ApiError) else _as_known(error) or internal_error()
    return known.code or known.kind


def _as_known(error: TelechatError) -> ApiError | None:
    if isinstance(error, ContextLengthError):
        return context_too_long(str(error))
    if isinstance(error, RequestError) and error.parameter is not None:
        return bad_field(str(error), error.parameter)
    if isinstance(error, PromptError):
        return bad_field(str(error), "messages")
    if isinstance(error, QueueFullError):
        return queue_full(str(error))
    if isinstance(error, EngineClosedError):
        return unavailable("The service is shutting down.")
    if isinstance(error, EngineDiedError):
        return unavailable(str(error))
    return None


def install_error_handlers(app: FastAPI) -> None:
    """Make every answer other than 2xx of `app` carry our body."""

    async def on_api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def on_telechat_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, TelechatError)
        return as_api_error(error).response()

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{error.detail}: {request.method} {request.url.path[:200]}"
        code = _CODES_BY_STATUS.get(error.status_code)
        return ApiError(error.status_code, message, code=code, headers=error.headers).response()

    async def on_unexpected(request: Request, error: Exception) -> Response:
        # The server logs the traceback; Starlette raises the error again after this answer.
        return internal_error().response()

    async def on_disconnect(_: Request, error: Exception) -> Response:
        # Nobody reads this; the status appears in the access log.
        return Response(status_code=499)

    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(TelechatError, on_telechat_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_unexpected)
