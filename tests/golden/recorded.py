"""Recorded models and what the official code computed with them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from telechat.checkpoint import load_model
from telechat.models import TeleChatModel

DATA = Path(__file__).parent / "data"
OFFICIAL = ("telechat-7b-tiny", "telechat-12b-tiny", "telechat-12b-v2-tiny", "telechat2-tiny")
MIXTURE = "telechat2-moe-tiny-derived"
VARIANTS = (*OFFICIAL, MIXTURE)
ATOL = 1e-4


@cache
def arrays(variant: str) -> dict[str, np.ndarray]:
    """All recorded arrays of a variant."""
    with np.load(DATA / variant / "golden.npz") as content:
        return {name: content[name] for name in content.files}


def has(variant: str, name: str) -> bool:
    """Whether the variant has the array."""
    return name in arrays(variant)


def ids(variant: str, name: str) -> Tensor:
    """A recorded integer array as int64."""
    return torch.from_numpy(arrays(variant)[name]).long()


def values(variant: str, name: str) -> Tensor:
    """A recorded floating-point array in its recorded dtype."""
    return torch.from_numpy(arrays(variant)[name])


def recorded_model(variant: str, **options: object) -> TeleChatModel:
    """The variant's model in fp32 on the CPU."""
    return load_model(DATA / variant, device="cpu", dtype="float32", **options)  # type: ignore[arg-type]


def assert_close(found: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    """Equal within an absolute tolerance only."""
    torch.testing.assert_close(found.float(), expected.float(), atol=atol, rtol=0)
