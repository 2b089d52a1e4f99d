"""The OpenAPI document: what FastAPI writes, plus the bodies that our routes read themselves.

Bodies are read by `body`, not by FastAPI, so their schemas are added here, and FastAPI's own validation
answers, which never occur, are taken out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REFERENCE = "#/components/schemas/{model}"

ERROR_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "title": "Error",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What was wrong and what to do."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field at fault."},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def json_body(schema_name: str) -> dict[str, Any]:
    """`openapi_extra` of a route whose body has the schema of that name."""
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=schema_name)}}}
    return {"requestBody": {"required": True, "content": content}}


def refused(schema_name: str) -> dict[str, Any]:
    """A `responses` entry for answers below 500 that refuse, with the schema of that name."""
    schema = {"$ref": _REFERENCE.format(model=schema_name)}
    return {"description": "Refused", "content": {"application/json": {"schema": schema}}}


def install_openapi(
    app: FastAPI, models: Sequence[type[BaseModel]], schemas: Mapping[str, Mapping[str, Any]]
) -> None:
    """Make `app` describe itself, once, with the schemas of `models` and the ones given as they are."""
    describe = app.openapi
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)

    def openapi() -> dict[str, Any]:
        document = describe()
        parts = document.setdefault("components", {}).setdefault("schemas", {})
        parts.update(definitions["$defs"] | dict(schemas) | {"Error": dict(ERROR_SCHEMA)})
        for name in ("HTTPValidationError", "ValidationError"):
            parts.pop(name, None)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                # A route with errors of its own shape has said so.
                operation["responses"].setdefault("4XX", refused("Error"))
        return document

    app.openapi = openapi  # type: ignore[method-assign]
