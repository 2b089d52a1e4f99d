"""From the messages of a request to the messages a tokenizer takes.

Only renames and unpacks: what a model generation cannot express is refused by its chat format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from telechat.serve.body import JsonError, parse_json
from telechat.serve.errors import bad_field
from telechat.serve.openai.chat_fields import Message, ToolCall

_ROLES = {"developer": "system", "bot": "assistant"}


def to_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Plain messages; system messages at the start are joined into one by an empty line.

    Raises:
        ApiError: 400 for content or calls that a message of that role cannot have.
    """
    return join_systems([_to_plain(position, message) for position, message in enumerate(messages)])


def join_systems(plain: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with system messages at the start joined into one by an empty line."""
    num_systems = next((i for i, message in enumerate(plain) if message["role"] != "system"), len(plain))
    if num_systems < 2:
        return plain
    content = "\n\n".join(message["content"] for message in plain[:num_systems])
    return [{"role": "system", "content": content}, *plain[num_systems:]]


def _to_plain(position: int, message: Message) -> dict[str, Any]:
    role = _ROLES.get(message.role, message.role)
    where = f"messages.{position}"
    if message.tool_calls and role != "assistant":
        raise bad_field(f"{where}.tool_calls: only assistant messages call tools.", f"{where}.tool_calls")
    if message.content is None and not (role == "assistant" and message.tool_calls):
        raise bad_field(f"{where}.content: a {message.role} message needs text.", f"{where}.content")
    plain: dict[str, Any] = {"role": role, "content": message.content or ""}
    if message.tool_calls:
        plain["tool_calls"] = [
            _to_plain_call(f"{where}.tool_calls.{index}", call)
            for index, call in enumerate(message.tool_calls)
        ]
    return plain


def _to_plain_call(where: str, call: ToolCall) -> dict[str, Any]:
    arguments = read_arguments(call.function.arguments, f"{where}.function.arguments")
    return {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def read_arguments(text: str, where: str) -> Any:
    """Arguments are JSON written into a JSON string: check them as strictly as a body.

    Raises:
        ApiError: 400 that names `where`.
    """
    try:
        return parse_json(text) if text.strip() else {}
    except JsonError as error:
        raise bad_field(f"{where} is not JSON: {error}.", where) from error
