"""ShareGPT rows: `conversations` with `from` and `value`; `system` and `tools` beside them.

    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}], "tools": "[…]"}

`function_call` holds the JSON of one call or a list of them, `observation` a tool's result.
"""

from __future__ import annotations

from typing import Any

from telechat.data.families.fields import (
    RowValue,
    list_field,
    object_of,
    parsed_json,
    text_field,
    tools_field,
)
from telechat.data.records import Conversation, Message
from telechat.data.rows import RowProblem

NAME = "sharegpt"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}


def recognise(row: RowValue) -> str | None:
    """Turns that say whom they are from."""
    turns = row.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "from" in turns[0]:
        return "the field conversations with from and value"
    return None


def read(row: RowValue) -> Conversation:
    """The turns with OpenAI's roles."""
    messages = read_turns(list_field(row, "conversations"))
    system = text_field(row, "system", default="")
    if system:
        messages = ({"role": "system", "content": system}, *messages)
    return Conversation(messages, _openai_tools(row))


def read_turns(values: list[Any]) -> tuple[Message, ...]:
    """Turns with `from` and `value` as messages.

    Raises:
        RowProblem: an unknown speaker, a value that is no text, a call that is no call.
    """
    messages: list[Message] = []
    for number, value in enumerate(values):
        turn = object_of(value, f"turn {number}")
        speaker, content = turn.get("from"), turn.get("value")
        if not isinstance(content, str):
            raise RowProblem(f"turn {number} has no text as value.")
        if speaker == "function_call":
            calls = parsed_json(content, f"the call in turn {number}")
            calls = calls if isinstance(calls, list) else [calls]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        elif isinstance(speaker, str) and speaker in _ROLES:
            messages.append({"role": _ROLES[speaker], "content": content})
        else:
            raise RowProblem(f"turn {number} is from {speaker!r}; known are {', '.join(_ROLES)}.")
    return tuple(messages)


def _openai_tools(row: RowValue) -> tuple[Any, ...]:
    """Tools are often written as the bare function; the template shows them wrapped."""
    return tuple(
        {"type": "function", "function": dict(tool)} if "function" not in tool else tool
        for tool in tools_field(row)
    )
