"""Prompts as callers of `LLM` write them: one or several, texts or token ids.

Knows no tokenizer and no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from telechat.engine.request import Request
from telechat.engine.sampling_params import SamplingParams, with_fields
from telechat.errors import RequestError, TelechatError

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


def params_of_each(
    count: int, params: SamplingParams | Sequence[SamplingParams], fields: Mapping[str, Any]
) -> list[SamplingParams]:
    """Sampling parameters of `count` prompts, from one for all or one for each; `fields` win over both.

    Raises:
        RequestError: there are not as many as prompts, or there is no such field.
    """
    each = [params] * count if isinstance(params, SamplingParams) else list(params)
    if len(each) != count:
        raise RequestError(
            f"{len(each)} sampling parameters were given for {count} prompts.", parameter="params"
        )
    return [with_fields(one, fields) for one in each]


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
