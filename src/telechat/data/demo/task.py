"""The record at the heart of the demo data: one conversation with what its answer must contain.

Knows nothing of tokens, models or files. Each task of the demo model is one `Task`: it draws rows for a split
from a seeded generator and judges an answer to a row that it drew.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Split = Literal["train", "test"]
Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One conversation that ends with the answer to learn.

    Attributes:
        task: name of the task that drew the row.
        messages: chat messages in OpenAI's shape; the last one is the assistant's reference answer.
        tools: OpenAI tool definitions offered to the model, if any.
        facts: what the task's judge needs (numbers, required strings, the expected call), JSON-serialisable.
        wording: identifier of the wording used, unique within the task; the overlap test compares these.
    """

    task: str
    messages: list[Message]
    facts: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None
    wording: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and the reason when it is not."""

    correct: bool
    reason: str = ""


class Task(Protocol):
    """One skill of the demo model."""

    name: str
    share: float  # relative share of training rows

    def wordings(self, split: Split) -> list[str]:
        """Identifiers of all wordings of a split; train and test are disjoint, test holds 20 % of them."""
        ...

    def draw(self, rng: random.Random, split: Split) -> Row:
        """One row with wordings (and numbers, names, figures) that belong to `split` only."""
        ...

    def judge(self, row: Row, answer: Message) -> Verdict:
        """Judge an assistant message ({"content", maybe "tool_calls"}) given to `row.messages[:-1]`."""
        ...
