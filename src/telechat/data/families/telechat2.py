"""Rows of TeleChat2: `system`, `dialog`, `multiturn`, `tool`.

    {"system": "…\\n", "dialog": [{"role": "user", "content": "…"}, {"role": "bot", "content": "…"}],
     "multiturn": false, "tool": false}

The system text of these files is the whole rendered system part, final newline and tool section included,
and calls and results are written into the contents. Where the parts render back to exactly the same text they
are taken apart again, so that training sees the tokens that the chat template makes when the model is used.
Everything else stays the text it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from telechat.data.families.fields import RowValue, list_field, object_of, text_field
from telechat.data.records import Conversation, Message
from telechat.data.rows import RowProblem
from telechat.tokenizer.jinja_template import TOOLS_HEAD, TOOLS_TAIL
from telechat.tokenizer.messages import dump_json

NAME = "telechat2"

_ROLES = {"user": "user", "bot": "assistant"}
_CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>\n(.*?)\n</tool_response>", re.DOTALL)


def recognise(row: RowValue) -> str | None:
    """A dialog."""
    return "the field dialog" if "dialog" in row else None


def read(row: RowValue) -> Conversation:
    """The conversation, with tools, calls and results taken apart in rows marked `tool`."""
    system = text_field(row, "system")
    turns = read_dialog(row)
    is_tool = flag(row, "tool")
    flag(row, "multiturn")
    tools: tuple[Mapping[str, Any], ...] = ()
    if is_tool:
        system, tools = _take_tools(system)
        turns = [part for turn in turns for part in _take_calls(turn)]
    if not tools:
        # The template ends the system part with a newline; these rows have it already.
        system = system.removesuffix("\n")
    return Conversation(({"role": "system", "content": system}, *turns), tools)


def read_dialog(row: RowValue) -> list[Message]:
    """The dialog with OpenAI's roles.

    Raises:
        RowProblem: a turn without text or with another role than user or bot.
    """
    messages: list[Message] = []
    for number, value in enumerate(list_field(row, "dialog")):
        turn = object_of(value, f"turn {number} of dialog")
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or role not in _ROLES:
            raise RowProblem(f"turn {number} of dialog has the role {role!r}; it must be user or bot.")
        if not isinstance(content, str):
            raise RowProblem(f"turn {number} of dialog has no text as content.")
        messages.append({"role": _ROLES[role], "content": content})
    return messages


def flag(row: RowValue, name: str) -> bool:
    """A boolean field; a missing one is false.

    Raises:
        RowProblem: it is something else.
    """
    value = row.get(name, False)
    if not isinstance(value, bool):
        raise RowProblem(f"the field {name} is {value!r}; it must be true or false.")
    return value


def _take_tools(system: str) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """The system text before the tool section, and the tools in it."""
    before, head, after = system.partition("\n" + TOOLS_HEAD)
    lines = after.removesuffix(TOOLS_TAIL)
    if not head or lines == after:
        return system, ()
    try:
        tools = tuple(json.loads(line) for line in lines.splitlines())
    except ValueError:
        return system, ()
    same = all(isinstance(tool, dict) for tool in tools) and lines == "".join(
        dump_json(tool) + "\n" for tool in tools
    )
    return (before, tools) if tools and same else (system, ())


def _take_calls(turn: Message) -> list[Message]:
    """A turn as one message with calls, as one or more tool results, or as it was."""
    content = turn["content"]
    if turn["role"] == "user":
        results = _RESULT.findall(content)
        same = content == "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)
        return [{"role": "tool", "content": result} for result in results] if results and same else [turn]
    bodies = _CALL.findall(content)
    text = content[: content.index("<tool_call>\n")] if bodies else content
    if not bodies or content != text + "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies):
        return [turn]
    try:
        calls = [json.loads(body) for body in bodies]
    except ValueError:
        return [turn]
    if not all(_is_call(call, body) for call, body in zip(calls, bodies, strict=True)):
        return [turn]
    return [{**turn, "content": text, "tool_calls": calls}]


def _is_call(call: Any, body: str) -> bool:
    """The call renders to exactly the same text; a name with a blank in front, as in the files, may stay."""
    return (
        isinstance(call, dict)
        and list(call) == ["name", "arguments"]
        and isinstance(call["name"], str)
        and bool(call["name"])
        and not isinstance(call["arguments"], str)
        and dump_json(call) == body
    )
