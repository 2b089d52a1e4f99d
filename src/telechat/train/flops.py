"""How much arithmetic a step needs, and how much of what the device can do it took (MFU).

Counted are the matrix products of the model itself, attention included, whatever a run computes a second time
to save memory: twice a multiplication's numbers forward, the same again for the gradients of activations and
for those of the weights that are trained. The denominator is measured: a square matrix product of this
device in the run's format. Knows nothing of the loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from telechat.device import CPU, synchronize
from telechat.models import TeleChatConfig, parameter_table
from telechat.train.batch import IGNORED, Batch

# Products of a CPU are tried in this order: 1024 takes seconds in a format that it has no instructions for.
_CPU_EXTENTS, _ACCELERATOR_EXTENTS = (128, 256, 512, 1024), (8192,)
_LONG_ENOUGH_S = 0.01
_REPEATS = 3
# A slower format is worth a word; vectors half as wide make a factor of two at most.
_MUCH_SLOWER = 3


@dataclass(frozen=True)
class StepCost:
    """What a model's steps cost.

    Attributes:
        per_token: floating-point operations of the blocks for one token, without attention.
        per_target: of the head, for one learnt token.
        per_pair: of attention, for one token seeing one.
    """

    per_token: float
    per_target: float
    per_pair: float

    def of(self, batch: Batch) -> float:
        """Operations of a batch that is on the host."""
        S = batch.ids.shape[1]
        numbers = batch.segments.long() + 1  # padding is 0
        rows = torch.arange(len(numbers))[:, None] * (S + 1)
        lengths = torch.bincount((numbers + rows).flatten(), minlength=len(numbers) * (S + 1))
        lengths = lengths.view(len(numbers), S + 1)[:, 1:].double()
        targets = int((batch.targets != IGNORED).sum())
        pairs = float((lengths * (lengths + 1) / 2).sum())
        return self.per_token * float(lengths.sum()) + self.per_target * targets + self.per_pair * pairs


def step_cost(config: TeleChatConfig, named: Iterable[tuple[str, nn.Parameter]]) -> StepCost:
    """The cost of a model's steps, given its parameters and which of them are trained."""
    table = parameter_table(config)
    trained = sum(p.numel() for _, p in named if p.requires_grad and p.dim() > 1)
    share = min(1.0, trained / sum(p.size for p in table if len(p.shape) > 1))
    active = config.moe.num_experts_per_token / config.moe.num_experts if config.moe else 1.0
    body = sum(
        p.size * (active if ".local_experts." in p.name else 1.0)
        for p in table
        if p.kind in ("linear", "router")
    )
    head = config.vocab_size * config.hidden_size
    weight_factor = 2 * (2 + share)
    return StepCost(
        per_token=weight_factor * body,
        per_target=weight_factor * head,
        per_pair=3 * 4 * config.hidden_size * config.num_layers,
    )


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product in `dtype`: the best of three."""
    best, extent = 0.0, 0
    for extent in _CPU_EXTENTS if device.type == CPU.type else _ACCELERATOR_EXTENTS:
        a = torch.ones(extent, extent, device=device, dtype=dtype)
        (a @ a).sum().item()
        best = min(_product_s(a) for _ in range(_REPEATS))
        if best > _LONG_ENOUGH_S:
            break
    return 2 * extent**3 / best


def _product_s(a: torch.Tensor) -> float:
    """Seconds of a product."""
    synchronize(a.device)
    start = time.perf_counter()
    a @ a
    synchronize(a.device)
    return time.perf_counter() - start


def slower_than_fp32(device: torch.device, rate: float) -> float | None:
    """How many times as fast as `rate` a CPU multiplies in fp32, where that is much; else None.

    So it is with 16-bit formats without instructions of the processor: torch multiplies numbers one by one.
    """
    factor = matmul_rate(device, torch.float32) / rate if device.type == CPU.type else 1.0
    return factor if factor > _MUCH_SLOWER else None
