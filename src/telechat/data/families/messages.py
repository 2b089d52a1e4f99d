"""OpenAI's `messages`, with `tools` and calls; `conversation` and lists of roles under `conversations` too.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…", "weight": 1}],
     "tools": […]}

An assistant message may have a `weight`: 0 keeps it as context, another number scales its loss.
"""

from __future__ import annotations

from typing import Any

from telechat.data.families.fields import (
    RowValue,
    list_field,
    loss_weight,
    object_of,
    parsed_json,
    tools_field,
)
from telechat.data.records import Conversation, Message
from telechat.data.rows import RowProblem

NAME = "messages"
_FIELDS = ("messages", "conversation", "conversations")
_ROLES = {"developer": "system", "bot": "assistant"}


def recognise(row: RowValue) -> str | None:
    """The field `messages`, or a list of objects with roles under one of the other names."""
    if "messages" in row:
        return "the field messages"
    for name in _FIELDS:
        value = row.get(name)
        if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
            return f"the field {name} with roles"
    return None


def read(row: RowValue) -> Conversation:
    """The messages as they are, calls and tools as objects even where the row holds their JSON text."""
    field = next((name for name in _FIELDS if name in row), "messages")
    messages = read_messages(list_field(row, field))
    weights = [
        loss_weight(message.get("weight", 1), f"the weight of message {number}")
        for number, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    plain = all(weight == 1 for weight in weights)
    return Conversation(messages, tools_field(row), None if plain else tuple(weights))


def read_messages(values: list[Any]) -> tuple[Message, ...]:
    """Messages with OpenAI's roles and calls as objects; their contents are checked when they are encoded.

    Raises:
        RowProblem: an element that is no object with a role, or calls that are not JSON.
    """
    messages = []
    for number, value in enumerate(values):
        message = dict(object_of(value, f"message {number}"))
        role = message.get("role")
        if not isinstance(role, str):
            raise RowProblem(f"message {number} has no role.")
        message["role"] = _ROLES.get(role, role)
        if "tool_calls" in message:
            message["tool_calls"] = parsed_json(message["tool_calls"], f"tool_calls of message {number}")
        messages.append(message)
    return tuple(messages)
