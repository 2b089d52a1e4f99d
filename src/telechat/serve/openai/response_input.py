"""From the input of a responses request to the messages a tokenizer takes.

A function call stands beside messages there; to the model it is part of the assistant's message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from telechat.serve.errors import ApiError, bad_field
from telechat.serve.openai.messages import join_systems, read_arguments
from telechat.serve.openai.response_fields import InputCall, InputMessage, InputOutput, ResponseRequest

_ITEMS: Mapping[str, type[BaseModel]] = {
    "message": InputMessage,
    "function_call": InputCall,
    "function_call_output": InputOutput,
}
# What other models wrote for themselves; there is nothing in it for this one.
_SKIPPED = ("reasoning",)


def to_template(body: ResponseRequest) -> list[dict[str, Any]]:
    """Plain messages.

    Raises:
        ApiError: 400 that names the item that cannot be read.
    """
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        for position, item in enumerate(body.input):
            _append(messages, item, f"input.{position}")
    if not messages or all(message["role"] == "system" for message in messages):
        raise bad_field("input holds no message of a user.", "input")
    return join_systems(messages)


def _append(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    kind = item.get("type", "message")
    if kind in _SKIPPED:
        return
    if not isinstance(kind, str) or kind not in _ITEMS:
        known = ", ".join(_ITEMS)
        raise bad_field(f"{where}.type is {str(kind)[:100]!r}; this service reads {known}.", f"{where}.type")
    read = _read(item, _ITEMS[kind], where)
    if isinstance(read, InputMessage):
        role = "system" if read.role == "developer" else read.role
        messages.append({"role": role, "content": _text(read.content, f"{where}.content")})
    elif isinstance(read, InputCall):
        arguments = read_arguments(read.arguments, f"{where}.arguments")
        call = {"type": "function", "function": {"name": read.name, "arguments": arguments}}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif isinstance(read, InputOutput):
        messages.append({"role": "tool", "content": _text(read.output, f"{where}.output")})


def _text(text: str | None, where: str) -> str:
    if text is None:
        raise bad_field(f"{where} must be text.", where)
    return text


def _read(item: Mapping[str, Any], model: type[BaseModel], where: str) -> BaseModel:
    try:
        return model.model_validate(item)
    except ValidationError as error:
        raise _named(error, where) from error


def _named(error: ValidationError, where: str) -> ApiError:
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join([where, *(str(part)[:100] for part in problem["loc"])])
    what = problem["msg"].removeprefix("Value error, ")
    return bad_field(f"{field}: {what[:1].lower()}{what[1:].rstrip('.')}.", field)
