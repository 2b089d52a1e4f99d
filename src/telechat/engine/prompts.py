"""Prompts as callers of `LLM` write them: one or several, texts or token ids.

Knows no tokenizer and no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from telechat.engine.request import Request
from telechat.errors import TelechatError

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A single prompt becomes a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [cast("list[int]", items)]
    return cast("list[Prompt]", items)


def numbered(make: Callable[[int], list[Request]], count: int) -> list[list[Request]]:
    """What `make` makes for each number; its errors say for which prompt, where there are several."""
    groups = []
    for number in range(count):
        try:
            groups.append(make(number))
        except TelechatError as error:
            if count > 1:
                error.add_note(f"(prompt {number} of {count}, counted from 0)")
            raise
    return groups
