"""Reading conversations: from the dictionaries users send to checked, frozen records.

Accepts the OpenAI shape and the original's role name `bot`. Knows nothing about tokens or formats; what a
generation cannot express is refused by its format, not here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telechat.errors import PromptError

# The name a user writes -> the name used inside. `bot` is the original's word for the assistant.
ROLES: Mapping[str, str] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "bot": "assistant",
    "tool": "tool",
}


@dataclass(frozen=True)
class FunctionCall:
    """A call the assistant made; `arguments` is any JSON value, normally an object."""

    name: str
    arguments: Any

    def to_json(self) -> str:
        """One line, key order and Chinese characters kept, as the models were trained on."""
        return dump_json({"name": self.name, "arguments": self.arguments})


@dataclass(frozen=True)
class Message:
    """One message; `role` is system, user, assistant or tool."""

    role: str
    content: str
    tool_calls: tuple[FunctionCall, ...] = ()


def dump_json(value: Any) -> str:
    """JSON on one line with `", "` and `": "`, without escaping Chinese."""
    return json.dumps(value, ensure_ascii=False)


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Checks and converts a conversation.

    Raises:
        PromptError: no messages, an unknown role, content of a wrong type, an empty user message, a malformed
            tool call.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(
            f"messages is a {type(messages).__name__}; it must be a list of messages.",
            hint='Pass [{"role": "user", "content": "…"}].',
        )
    if not messages:
        raise PromptError("The conversation is empty.", hint="Send at least one user message.")
    return [_read_message(position, message) for position, message in enumerate(messages)]


def _read_message(position: int, message: Mapping[str, Any]) -> Message:
    if not isinstance(message, Mapping):
        raise PromptError(f"Message {position} is a {type(message).__name__}; it must be an object.")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(
            f"Message {position} has the role {role!r}.", hint=f"Use one of {', '.join(ROLES)}."
        )
    role = ROLES[role]
    calls = _read_tool_calls(position, role, message.get("tool_calls"))
    content = _read_content(position, message.get("content"), may_be_null=role == "assistant")
    if role == "user" and not content:
        raise PromptError(f"Message {position} (user) is empty.", hint="Write a question.")
    return Message(role, content, calls)


def _read_content(position: int, content: Any, *, may_be_null: bool) -> str:
    if content is None and may_be_null:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        return "".join(_read_text_part(position, part) for part in content)
    raise PromptError(
        f"The content of message {position} is {_kind(content)}; it must be text.",
        hint="Send a string or a list of text parts.",
    )


def _read_text_part(position: int, part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
    raise PromptError(
        f"Message {position} has a content part of type {kind!r}.",
        hint='TeleChat reads text only: {"type": "text", "text": "…"}.',
    )


def _read_tool_calls(position: int, role: str, calls: Any) -> tuple[FunctionCall, ...]:
    if calls is None or calls == []:
        return ()
    if role != "assistant":
        raise PromptError(f"Message {position} ({role}) has tool_calls; only the assistant calls tools.")
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
        raise PromptError(f"tool_calls of message {position} is {_kind(calls)}; it must be a list.")
    return tuple(_read_call(position, call) for call in calls)


def _read_call(position: int, call: Any) -> FunctionCall:
    """A call in the OpenAI shape, or its inner `{"name", "arguments"}` alone."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise PromptError(
            f"A tool call of message {position} names no function.",
            hint='Send {"type": "function", "function": {"name": "…", "arguments": "{…}"}}.',
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # OpenAI clients send a string. Dumping it again would show the model an escaped string it never saw.
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except json.JSONDecodeError as error:
            raise PromptError(
                f"The arguments of the call to {name} in message {position} are not JSON: {error}.",
                hint="Send the arguments as a JSON object or as the string of one.",
            ) from error
    return FunctionCall(name, arguments)


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    """The tools as a list, empty when there are none.

    Raises:
        PromptError: a tool that is not `{"type": "function", "function": {"name": …}}`.
    """
    if tools is None:
        return []
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise PromptError(f"tools is a {type(tools).__name__}; it must be a list.")
    for position, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        named = isinstance(function, Mapping) and isinstance(function.get("name"), str)
        if not named or tool.get("type") != "function":
            raise PromptError(
                f"Tool {position} is not a function with a name.",
                hint='Send {"type": "function", "function": {"name": "…", "parameters": {…}}}.',
            )
    return list(tools)


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
