"""`/docs`: the OpenAPI document as one plain page.

No script, no font, nothing from another host, so it reads the same without a network. Knows the document, not
the routes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; font-size: 1.1rem }
h2 code { font-size: 1.1rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #8884 }
pre { background: #8882; padding: .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere; border-radius: .4rem }
"""
_EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "生抽与老抽的区别？"}], "stream": True},
    "/v1/completions": {"prompt": "生抽与老抽的区别是", "max_tokens": 64},
    "/v1/responses": {"input": "生抽与老抽的区别？"},
    "/v1/embeddings": {"input": "生抽与老抽的区别"},
    "/tokenize": {"prompt": "生抽与老抽的区别", "return_token_strs": True},
    "/detokenize": {"tokens": [100, 101]},
    "/telechat/gptDialog/v2": {"dialog": [{"role": "user", "content": "生抽与老抽的区别？"}]},
    "/telechat/gptDialog/v4": {"dialog": [{"role": "user", "content": "生抽与老抽的区别？"}]},
}


def docs_router(app: FastAPI) -> APIRouter:
    """The page about `app`."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs(request: Request) -> HTMLResponse:
        page = render(app.openapi(), str(request.base_url).rstrip("/"))
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

    return router


def render(document: Mapping[str, Any], base_url: str) -> str:
    """An HTML page about an OpenAPI document; `base_url` appears in the examples."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f'<h1>{title}</h1><p>The same as a machine reads it: <a href="/openapi.json">/openapi.json</a>. ',
        "Where the service has keys, send one as <code>Authorization: Bearer KEY</code>.</p>",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += _operation(document, base_url, path, method.upper(), operation)
    parts.append("</body></html>")
    return "\n".join(parts)


def _operation(
    document: Mapping[str, Any], base_url: str, path: str, method: str, operation: Mapping[str, Any]
) -> Iterator[str]:
    yield f"<h2><code>{method} {escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}.</p>"
    if "description" in operation:
        yield f"<p>{escape(operation['description'])}</p>"
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        yield from _fields(document, _resolve(document, schema))
    if path in _EXAMPLES:
        body = json.dumps(_EXAMPLES[path], ensure_ascii=False)
        command = f"curl -N {base_url}{path} -H 'Content-Type: application/json' -d '{body}'"
        yield f"<pre>{escape(command)}</pre>"


def _fields(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """A table of a body's fields, required ones first; one for each form where a body has several."""
    for option in schema.get("anyOf", ()):
        yield from _fields(document, _resolve(document, option))
    required = schema.get("required", ())
    fields = sorted(schema.get("properties", {}).items(), key=lambda item: item[0] not in required)
    if not fields:
        return
    yield "<table><tr><th>Field</th><th>Type</th><th>Default</th><th>Meaning</th></tr>"
    for name, field in fields:
        mark = " (required)" if name in required else ""
        default = "" if field.get("default") is None else json.dumps(field["default"])
        yield f"<tr><td><code>{escape(name)}</code>{mark}</td><td>{escape(_type(document, field))}</td>"
        yield f"<td>{escape(default)}</td><td>{escape(field.get('description', ''))}</td></tr>"
    yield "</table>"


def _resolve(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Mapping[str, Any] = document["components"]["schemas"][reference.rsplit("/", 1)[-1]]
    return found


def _type(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """A field's type and range in words."""
    schema = _resolve(document, schema)
    if "anyOf" in schema:
        return " or ".join(
            _type(document, option) for option in schema["anyOf"] if option.get("type") != "null"
        )
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(document, schema.get('items', {}))}"
    limits = [
        f"{sign} {schema[key]}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        # Limits of the number format are no news.
        if key in schema and abs(schema[key]) < 2**62
    ]
    kind = str(schema.get("type", "any"))
    return f"{kind} {', '.join(limits)}" if limits else kind
