"""The grammar of an answer that must call a function: exactly what the models were trained to write.

A call is `<tool_call>`, a line with its name and arguments as JSON, `</tool_call>`; several stand on lines of
their own. Written in llguidance's form of Lark. Knows the layout of calls; not how a grammar is obeyed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from telechat.engine.sampling_params import StructuredOutputs
from telechat.serve.errors import bad_field
from telechat.serve.openai.tools import Function
from telechat.tokenizer.tool_calls import CLOSING_TAG, OPENING_TAG

# White space as in the training data, and nowhere else.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def call_grammar(
    functions: Sequence[Function],
    token_id: Callable[[str], int | None],
    *,
    only_first: bool,
    answer: Mapping[str, Any] | None = None,
) -> StructuredOutputs:
    """What an answer that calls functions looks like.

    Args:
        functions: those that may be called, at least one.
        token_id: id of a token by its name; the tags of some vocabularies are tokens.
        only_first: one call and no more.
        answer: a JSON schema that the answer may follow instead of calling.

    Raises:
        ApiError: 400, a function's parameters cannot be those of a function.
    """
    calls = "call" if only_first else 'call ("\\n" call)*'
    rules = [
        f"start: {calls}" if answer is None else f"start: {calls} | answer",
        f'call: {_tag(OPENING_TAG, token_id)} "\\n" body "\\n" {_tag(CLOSING_TAG, token_id)}',
        "body: " + " | ".join(f"body_{number}" for number in range(len(functions))),
    ]
    for number, function in enumerate(functions):
        opening = _quoted(f'{{"name": {json.dumps(function.name, ensure_ascii=False)}, "arguments": ')
        schema = json.dumps(_arguments_schema(function))
        rules.append(f'body_{number}: {opening} arguments_{number} "}}"')
        rules.append(f"arguments_{number}: %json {schema}")
    if answer is not None:
        rules.append(f"answer: %json {json.dumps(answer)}")
    return StructuredOutputs(grammar="\n".join(rules) + "\n")


def _tag(name: str, token_id: Callable[[str], int | None]) -> str:
    number = token_id(name)
    return _quoted(name) if number is None else f"<[{number}]>"


def _quoted(text: str) -> str:
    return json.dumps(text)


def _arguments_schema(function: Function) -> dict[str, Any]:
    """An object with the properties that the client declared and no others, unless it allows them."""
    schema = dict(function.parameters or {"properties": {}})
    if schema.setdefault("type", "object") != "object":
        raise bad_field(
            f"{function.field} has the type {str(schema['type'])[:50]!r}; arguments are an object.",
            function.field,
        )
    if "properties" in schema and "patternProperties" not in schema:
        schema.setdefault("additionalProperties", False)
    schema["x-guidance"] = {**_LAYOUT, "lenient": not function.is_strict}
    return schema
