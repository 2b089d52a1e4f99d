"""What the logits of a step follow from: a plain value that the runner hands to the sampler."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class History:
    """All tokens behind the logits of a step, prompt and answer, row by row (B rows, T longest).

    Attributes:
        token_ids_BT: int64; columns past a row's length hold anything that is a valid id.
        lengths_B: int64, tokens of each row.
    """

    token_ids_BT: Tensor
    lengths_B: Tensor
