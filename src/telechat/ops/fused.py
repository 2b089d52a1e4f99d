"""The operations of a decoder step as kernels that each do several of torch's, on an accelerator.

`FusedKernels` names them; which device has which is said by `ops.cuda` and `ops.npu`. Knows nothing of
models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from telechat.ops.quantized import QuantizedWeight

Replay = Callable[[], None]
# [M, K] -> [M, N], in the activations' dtype.
Projection = Callable[[Tensor], Tensor]


class Recorder(Protocol):
    """Turns a run on fixed tensors into something that repeats it without Python."""

    def record(self, run: Callable[[], None]) -> Replay:
        """What repeats `run`, which reads and writes tensors that stay where they are."""
        ...


class RmsNorm(Protocol):
    """weight * round(x / rms(x)) of x [rows, width]; first x += `add`, in place."""

    def __call__(self, x: Tensor, weight: Tensor, eps: float, *, add: Tensor | None = None) -> Tensor:
        """[rows, width] in x's dtype."""
        ...


class BindLinear(Protocol):
    """Makes the product with a weight [N, K] (+ bias [N]).

    With `gated` the first half of the outputs opens the second: silu(first) * second, [M, N / 2].
    """

    def __call__(self, weight: Tensor, bias: Tensor | None, *, gated: bool = False) -> Projection:
        """The product; what is chosen for the weight is chosen here, once."""
        ...


class BindQuantized(Protocol):
    """As `BindLinear`, for integers and their scales."""

    def __call__(self, weight: QuantizedWeight, bias: Tensor | None, *, gated: bool = False) -> Projection:
        """The product."""
        ...


@dataclass(frozen=True)
class FusedKernels:
    """What a step is made of, besides the paged cache.

    Attributes:
        swiglu: (gate, up), each [M, F] with rows any distance apart -> silu(gate) * up.
        recorder: makes what records decoding steps; None where steps cannot be recorded.
    """

    name: str
    rms_norm: RmsNorm
    bind_linear: BindLinear
    bind_quantized: BindQuantized
    swiglu: Callable[[Tensor, Tensor], Tensor]
    recorder: Callable[[], Recorder] | None
    reason: str


def choose_fused_kernels(device: torch.device, dtype: torch.dtype, width: int) -> FusedKernels | str:
    """The kernels for models of `dtype` and hidden size `width` on a device, or why there are none."""
    from telechat.ops.cuda import choice as cuda
    from telechat.ops.npu import choice as npu

    choices: tuple[Callable[[torch.device, torch.dtype, int], FusedKernels | str], ...] = (
        cuda.fused_kernels,
        npu.fused_kernels,
    )
    reasons: list[str] = []
    for choose in choices:
        found = choose(device, dtype, width)
        if not isinstance(found, str):
            return found
        reasons.append(found)
    return "; ".join(reasons)
