"""Which tokens are learnt, found from the control tokens of an encoded conversation.

Text never becomes a control token, so the control ids alone say who speaks. `turns` is the official mask of
both generations; `answers` leaves out of it what the model is never asked to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from telechat.tokenizer import SpecialTokens

LossOn = Literal["answers", "turns", "all"]
"""`answers`: the assistant's text and `<_end>`. `turns`: also `<_bot>` and every `<_user>`, as the official
scripts. `all`: every token."""


def answer_spans(ids: Sequence[int], special: SpecialTokens) -> list[tuple[int, int]]:
    """From each `<_bot>` through its `<_end>`, as half-open ranges; the last may lack its `<_end>`.

    The k-th `<_bot>` belongs to the k-th `<_end>`; with exactly one `<_end>` too few the last span runs to
    the end of the sequence.
    """
    bots = [place for place, token_id in enumerate(ids) if token_id == special.bot]
    ends = [place + 1 for place, token_id in enumerate(ids) if token_id == special.eos]
    if len(ends) == len(bots) - 1:
        ends.append(len(ids))
    return list(zip(bots, ends, strict=False))


def turn_mask(ids: Sequence[int], special: SpecialTokens) -> list[bool]:
    """The official mask: the `<_user>` token of every turn, and `<_bot>` through `<_end>`."""
    mask = [False] * len(ids)
    users = [place for place, token_id in enumerate(ids) if token_id == special.user]
    for user, (start, end) in zip(users, answer_spans(ids, special), strict=False):
        mask[user] = True
        mask[start:end] = [True] * (end - start)
    return mask


def answer_mask(
    ids: Sequence[int], special: SpecialTokens, answer_weights: Sequence[float] | None = None
) -> list[bool]:
    """What the assistant writes: the text of each answer and its `<_end>`.

    Args:
        answer_weights: one per answer; an answer with the weight 0 is not learnt.
    """
    mask = [False] * len(ids)
    for number, (start, end) in enumerate(answer_spans(ids, special)):
        if answer_weights is None or answer_weights[number] > 0:
            mask[start + 1 : end] = [True] * (end - start - 1)
    return mask


def token_weights(ids: Sequence[int], special: SpecialTokens, answer_weights: Sequence[float]) -> list[float]:
    """The weight of each answer on all of its tokens, `<_bot>` included; 1 elsewhere."""
    weights = [1.0] * len(ids)
    for weight, (start, end) in zip(answer_weights, answer_spans(ids, special), strict=True):
        weights[start:end] = [weight] * (end - start)
    return weights
