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
    plain = [_to_plain(position, message) for position, message in enumerate(messages)]
    while len(plain) > 1 and plain[0]["role"] == plain[1]["role"] == "system":
        first, second = plain[0], plain[1]
        plain[:2] = [{"role": "system", "content": f"{first['content']}\n\n{second['content']}"}]
    return plain


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
    """Arguments are JSON written into a JSON string: check them as strictly as a body."""
    try:
        arguments = parse_json(call.function.arguments) if call.function.arguments.strip() else {}
    except JsonError as error:
        param = f"{where}.function.arguments"
        raise bad_field(f"{param} is not JSON: {error}.", param) from error
    return {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
