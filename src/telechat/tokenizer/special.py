"""The control tokens of the TeleChat family, by name.

Knows which names exist, what each is for, and which of them ordinary text must never turn into. Knows nothing
about files or about how text is split: a vocabulary tells it which id stands behind a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from telechat.errors import TokenizerError

# Each role with the names it has had, newest first. The 7B calls its padding `<pad>`, and the sentencepiece
# models call id 0 `<_unk>`.
ROLE_NAMES: Mapping[str, tuple[str, ...]] = {
    "unk": ("<unk>", "<_unk>"),
    "bos": ("<_start>",),
    "eos": ("<_end>",),
    "pad": ("<_pad>", "<pad>"),
    "user": ("<_user>",),
    "bot": ("<_bot>",),
    "system": ("<_system>",),
    "observation": ("<_observation>",),
    "tool_call": ("<tool_call>",),
    "tool_call_end": ("</tool_call>",),
    "tool_response": ("<tool_response>",),
    "tool_response_end": ("</tool_response>",),
}
REQUIRED_ROLES = ("bos", "eos", "pad", "user", "bot")

# Tool tags are control tokens for the encoder (user text must not forge a tool result) but stay visible in
# decoded text: whoever parses a tool call reads them there.
TOOL_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

_CONTROL_NAME = re.compile(r"<_[A-Za-z0-9_]+>|<reserve\d+>")


def is_control_name(name: str) -> bool:
    """True for names that ordinary text must never become, e.g. `<_user>`, `<reserve7>`, `<tool_call>`."""
    return name in TOOL_TAGS or name in ("<pad>", "<unk>") or _CONTROL_NAME.fullmatch(name) is not None


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids of the control tokens; None where the vocabulary has no such token."""

    unk: int | None
    bos: int
    eos: int
    pad: int
    user: int
    bot: int
    system: int | None = None
    observation: int | None = None
    tool_call: int | None = None
    tool_call_end: int | None = None
    tool_response: int | None = None
    tool_response_end: int | None = None

    def ids(self) -> frozenset[int]:
        """Every id named here."""
        values = (getattr(self, field.name) for field in fields(self))
        return frozenset(value for value in values if value is not None)

    @classmethod
    def from_vocabulary(
        cls, name_to_id: Callable[[str], int | None], overrides: Mapping[str, int] | None = None
    ) -> SpecialTokens:
        """Looks every role up by name.

        Args:
            name_to_id: id of a token string, None when the vocabulary has no such token.
            overrides: role -> id that wins over the name (a 7B or 12B `generation_config.json`).

        Raises:
            TokenizerError: a token that conversations cannot do without is missing.
        """
        found: dict[str, int | None] = {}
        for role, names in ROLE_NAMES.items():
            known = (name_to_id(name) for name in names)
            found[role] = next((token_id for token_id in known if token_id is not None), None)
        found.update(overrides or {})
        missing = [ROLE_NAMES[role][0] for role in REQUIRED_ROLES if found[role] is None]
        if missing:
            raise TokenizerError(
                f"The vocabulary has no token {', '.join(missing)}.",
                hint="Check that the tokenizer files and generation_config.json belong to a TeleChat model.",
            )
        return cls(**found)  # type: ignore[arg-type]  # the required ones were checked above
