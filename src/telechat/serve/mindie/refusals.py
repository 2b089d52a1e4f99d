"""Errors in TGI's shape, `{"error": str, "error_type": str}`, and events that carry them.

Only renames what `serve.errors` has decided: a body that cannot be taken is 422 here, where OpenAI says 400.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from fastapi.responses import JSONResponse, Response

from telechat.errors import TelechatError
from telechat.serve.errors import ApiError, as_api_error

ERROR_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "title": "MindieError",
    "required": ["error"],
    "properties": {
        # Keys are checked before the route is known; that refusal has the shape of the other routes.
        "error": {"type": ["string", "object"], "description": "What was wrong and what to do."},
        "error_type": {
            "type": "string",
            "enum": ["validation", "overloaded", "generation", "incomplete_generation"],
        },
    },
}


def refusal(error: ApiError | TelechatError) -> Response:
    """An error as an answer."""
    known = error if isinstance(error, ApiError) else as_api_error(error)
    status = 422 if known.status == 400 else known.status
    return JSONResponse(refusal_body(known), status_code=status, headers=known.headers)


def refusal_body(error: ApiError | TelechatError) -> dict[str, str]:
    """Body of a refusal, also the last event of a stream that fails."""
    known = error if isinstance(error, ApiError) else as_api_error(error)
    kind = {429: "overloaded", 504: "incomplete_generation"}.get(known.status)
    if kind is None:
        kind = "validation" if known.status < 500 else "generation"
    prefix = "Input validation error: " if known.status == 400 else ""
    return {"error": prefix + known.message, "error_type": kind}


async def in_tgi_shape(work: Awaitable[Response]) -> Response:
    """The answer of `work`, or its error in TGI's shape."""
    try:
        return await work
    except (ApiError, TelechatError) as error:
        return refusal(error)
