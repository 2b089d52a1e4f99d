"""Two checkpoints compared: every tensor, then what they compute; the result is a certificate.

Tensors are streamed and must be equal, exactly or after rounding to the narrower dtype of the two. Logits are
computed by both on the same prompts with as many layers as asked for, so that a model larger than memory can
be compared too. For formats of other programs, what those programs would compute is compared.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from telechat import __version__
from telechat.checkpoint.formats.lazy import LazyTensor, windows
from telechat.checkpoint.formats.table import Checkpoint
from telechat.checkpoint.formats.writing import OnProgress
from telechat.device import dtype_name
from telechat.models import TeleChatModel, build_model, parameter_table

FILE = "certificate.json"
LEAST_AGREEMENT = 0.95
_WINDOW_BYTES = 16 << 20
_RANDOM_TOKENS = 32
_SEED = 1234


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a comparison found.

    Attributes:
        first, second: what each side is: format, dtypes, SHA-256 over all tensors in the table's order.
        num_tensors, num_equal, num_rounded: tensors; those equal bit for bit; those equal after rounding.
        different: tensors that differ by more, and by how much at most.
        max_difference: largest difference of any number.
        num_layers: layers that logits were computed with.
        max_logit_difference: of all prompts.
        top1_agreement: share of positions whose likeliest token is the same.
        versions: of what computed.
    """

    first: dict[str, Any]
    second: dict[str, Any]
    num_tensors: int
    num_equal: int
    num_rounded: int
    different: dict[str, float]
    max_difference: float
    num_layers: int
    max_logit_difference: float
    top1_agreement: float
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def is_same(self) -> bool:
        """Whether no tensor differs beyond rounding, and nearly all likeliest tokens are the same.

        Not all: where two tokens are about equally likely, the last bits decide.
        """
        return not self.different and self.top1_agreement >= LEAST_AGREEMENT

    def as_json(self) -> dict[str, Any]:
        """As it is written."""
        return {"is_same": self.is_same, **asdict(self)}


def verify(
    first: Checkpoint,
    second: Checkpoint,
    prompts: Sequence[Sequence[int]],
    *,
    num_layers: int,
    on_progress: OnProgress | None = None,
) -> Certificate:
    """Compare two checkpoints of one model.

    Args:
        prompts: token ids of real texts; random ones are added.
        num_layers: layers to compute logits with; at most all.
    """
    found = _compare_tensors(first, second, on_progress)
    layers = min(num_layers, first.config.num_layers, second.config.num_layers)
    ids = [list(prompt) for prompt in prompts if prompt]
    generator = torch.Generator().manual_seed(_SEED)
    vocab = min(first.config.vocab_size, second.config.vocab_size)
    ids.append(torch.randint(vocab, (_RANDOM_TOKENS,), generator=generator).tolist())
    difference, agreement = _compare_logits(first, second, ids, layers)
    return Certificate(
        **found,
        num_layers=layers,
        max_logit_difference=difference,
        top1_agreement=agreement,
        versions={"telechat": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )


def _compare_tensors(first: Checkpoint, second: Checkpoint, on_progress: OnProgress | None) -> dict[str, Any]:
    hashes = hashlib.sha256(), hashlib.sha256()
    num_equal = num_rounded = num_done = 0
    num_all = sum(tensor.num_bytes for tensor in first.tensors.values())
    different: dict[str, float] = {}
    largest = 0.0
    for name in dict.fromkeys([*first.tensors, *second.tensors]):
        mine, other = first.tensors.get(name), second.tensors.get(name)
        if mine is None or other is None or mine.shape != other.shape:
            different[name] = math.inf
            continue
        gap, is_equal, is_rounded = _compare(mine, other, hashes)
        largest = max(largest, gap)
        num_equal += is_equal
        num_rounded += is_rounded and not is_equal
        if not is_rounded:
            different[name] = gap
        num_done += mine.num_bytes
        if on_progress is not None:
            on_progress(num_done, num_all)
    sides = [
        {
            "format": side.format,
            "dtypes": sorted({dtype_name(tensor.dtype) for tensor in side.tensors.values()}),
            "sha256": digest.hexdigest(),
        }
        for side, digest in zip((first, second), hashes, strict=True)
    ]
    return {
        "first": sides[0],
        "second": sides[1],
        "num_tensors": len(set(first.tensors) | set(second.tensors)),
        "num_equal": num_equal,
        "num_rounded": num_rounded,
        "different": different,
        "max_difference": largest,
    }


def _compare(mine: LazyTensor, other: LazyTensor, hashes: Sequence[Any]) -> tuple[float, bool, bool]:
    """(largest difference, equal, equal after rounding to the narrower dtype)."""
    largest, is_equal, is_rounded = 0.0, True, True
    narrow = min(mine.dtype, other.dtype, key=lambda dtype: (dtype.itemsize, -torch.finfo(dtype).eps))
    for window in windows(mine.shape, 4, _WINDOW_BYTES):
        ours, theirs = mine.read(window), other.read(window)
        for tensor, digest in zip((ours, theirs), hashes, strict=True):
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        gap = (ours.double() - theirs.double()).abs().max().item()
        largest = max(largest, math.inf if math.isnan(gap) else gap)
        is_equal = is_equal and gap == 0
        is_rounded = is_rounded and torch.equal(ours.to(narrow), theirs.to(narrow))
    return largest, is_equal, is_rounded


def _compare_logits(
    first: Checkpoint, second: Checkpoint, prompts: Sequence[Sequence[int]], num_layers: int
) -> tuple[float, float]:
    """(largest difference, share of positions with the same likeliest token); one model at a time."""
    expected = _logits(first, prompts, num_layers)
    found = _logits(second, prompts, num_layers)
    if expected.shape != found.shape:
        return math.inf, 0.0
    same = (expected.argmax(-1) == found.argmax(-1)).float().mean().item()
    return (expected - found).abs().max().item(), same


@torch.no_grad()
def _logits(checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], num_layers: int) -> Tensor:
    model = _first_layers(checkpoint, num_layers)
    rows = [model(torch.tensor([list(prompt)]))[0].float() for prompt in prompts]
    return torch.cat(rows)


def _first_layers(checkpoint: Checkpoint, num_layers: int) -> TeleChatModel:
    """The model cut off after some layers, in fp32."""
    config = (checkpoint.runs_as or checkpoint.config).replace(num_layers=num_layers)
    model = build_model(config, device="meta")
    for parameter in parameter_table(config):
        owner, _, leaf = parameter.name.rpartition(".")
        values = checkpoint.tensors[parameter.name].read().float()
        setattr(model.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))
    return model.eval()
