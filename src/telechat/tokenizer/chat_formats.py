"""How each generation writes a conversation, as a sequence of control tokens and pieces of text.

A format decides what comes in which order; it does not encode. Because control tokens and text stay apart
until each text is encoded on its own, nothing a user writes can become a control token.

* `telechat1` (7B, 12B, 12B-V2): `[user] q [bot] a [eos] …`; no system prompt, no tools.
* `telechat2-115b`: the same behind one `[bos]`.
* `telechat2` (3B, 7B, 35B, MoE and the demo): the chat template with system prompt and tools.

The official code skips what a format cannot express (a system prompt in TeleChat1, a later system message in
TeleChat2). Here that is an error unless `official=True` asks for the original behaviour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from telechat.errors import ConfigError, PromptError
from telechat.tokenizer.jinja_template import DEFAULT_SYSTEM, TOOLS_HEAD, TOOLS_TAIL
from telechat.tokenizer.messages import FunctionCall, Message, dump_json
from telechat.tokenizer.special import TOOL_TAGS

_TAG_SPLIT = re.compile("(" + "|".join(re.escape(tag) for tag in TOOL_TAGS) + ")")


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered conversation.

    Attributes:
        text: the text, or the name of the control token.
        is_control: `text` names a control token. A vocabulary without that token (the official sentencepiece
            models have no tool tags) reads it as ordinary text.
        is_answer: the assistant writes this, end token included; training learns to predict it.
    """

    text: str
    is_control: bool = False
    is_answer: bool = False


class ChatFormat(Protocol):
    """What a generation's conversations look like."""

    @property
    def name(self) -> str: ...
    @property
    def supports_system(self) -> bool: ...
    @property
    def supports_tools(self) -> bool: ...
    @property
    def official_from_text(self) -> bool:
        """The official code renders one string and tokenises that, rather than assembling ids."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        official: bool,
    ) -> list[Part]:
        """The conversation as parts.

        Raises:
            PromptError: the generation cannot express it (unless `official`, which skips such messages).
        """
        ...


def _control(name: str, *, is_answer: bool = False) -> Part:
    return Part(name, is_control=True, is_answer=is_answer)


@dataclass(frozen=True)
class IdFormat:
    """TeleChat1 and TeleChat2-115B: bare turns between control ids."""

    name: str
    begins_with_bos: bool
    supports_system: bool = False
    supports_tools: bool = False
    official_from_text: bool = False

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        official: bool,
    ) -> list[Part]:
        if tools and not official:
            raise PromptError(
                f"The chat format {self.name} has no tools; {len(tools)} were given.",
                hint="Use a TeleChat2 model (3B, 7B, 35B), or leave tools out.",
            )
        parts = [_control("<_start>")] if self.begins_with_bos else []
        for position, message in enumerate(messages):
            if message.role == "user":
                parts += [_control("<_user>"), Part(message.content)]
            elif message.role == "assistant" and (official or not message.tool_calls):
                parts += [_control("<_bot>"), Part(message.content, is_answer=True)]
                parts += [_control("<_end>", is_answer=True)]
            elif not official:
                raise self._cannot_express(position, message)
        if add_generation_prompt:
            parts.append(_control("<_bot>"))
        return parts

    def _cannot_express(self, position: int, message: Message) -> PromptError:
        if message.role == "system":
            return PromptError(
                f"The chat format {self.name} has no system prompt (message {position}).",
                hint="Put the instruction into the first user message.",
            )
        return PromptError(
            f"The chat format {self.name} has no tools; message {position} ({message.role}) uses them.",
            hint="Use a TeleChat2 model (3B, 7B, 35B), or leave tools out.",
        )


@dataclass(frozen=True)
class TemplateFormat:
    """TeleChat2's chat template. No bos; a default system prompt; Hermes-style tools."""

    name: str = "telechat2"
    supports_system: bool = True
    supports_tools: bool = True
    official_from_text: bool = True

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        official: bool,
    ) -> list[Part]:
        has_system = bool(messages) and messages[0].role == "system"
        parts = list(self._system(messages[0].content if has_system else DEFAULT_SYSTEM, tools))
        previous = ""
        for position, message in enumerate(messages):
            if message.role == "user":
                parts += [_control("<_user>"), Part(message.content)]
            elif message.role == "assistant":
                parts += self._assistant(message)
            elif message.role == "tool":
                parts += [Part("\n")] if previous == "tool" else [_control("<_user>")]
                parts += [_control("<tool_response>"), Part(f"\n{message.content}\n")]
                parts += [_control("</tool_response>")]
            elif position > 0 and not official:
                raise PromptError(
                    f"Message {position} is a system message; only the first message may be one.",
                    hint="Move it to the front or merge it into the first.",
                )
            previous = message.role
        if add_generation_prompt:
            parts.append(_control("<_bot>"))
        return parts

    def _system(self, system: str, tools: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
        yield _control("<_system>")
        yield Part(system + "\n")
        if tools:
            yield Part(TOOLS_HEAD)
            yield Part("".join(dump_json(tool) + "\n" for tool in tools))
            # Only the template's own tags are tags; the same strings inside a tool's description stay text.
            for piece in _TAG_SPLIT.split(TOOLS_TAIL):
                if piece:
                    yield Part(piece, is_control=piece in TOOL_TAGS)

    def _assistant(self, message: Message) -> list[Part]:
        parts = [_control("<_bot>"), Part(message.content, is_answer=True)]
        for position, call in enumerate(message.tool_calls):
            if position > 0:
                parts.append(Part("\n", is_answer=True))
            parts += self._call(call)
        return [*parts, _control("<_end>", is_answer=True), Part("\n")]

    def _call(self, call: FunctionCall) -> list[Part]:
        return [
            _control("<tool_call>", is_answer=True),
            Part(f"\n{call.to_json()}\n", is_answer=True),
            _control("</tool_call>", is_answer=True),
        ]


CHAT_FORMATS: Mapping[str, ChatFormat] = {
    "telechat1": IdFormat("telechat1", begins_with_bos=False),
    "telechat2-115b": IdFormat("telechat2-115b", begins_with_bos=True),
    "telechat2": TemplateFormat(),
}


def chat_format_by_name(name: str) -> ChatFormat:
    """The format of that name.

    Raises:
        ConfigError: unknown name.
    """
    if name not in CHAT_FORMATS:
        raise ConfigError(f"Unknown chat format {name!r}.", hint=f"Use one of {', '.join(CHAT_FORMATS)}.")
    return CHAT_FORMATS[name]
