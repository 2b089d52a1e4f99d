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

Record = Callable[[], Tensor]
Replay = Callable[[], None]


class Recorder(Protocol):
    """Turns a run on fixed tensors into something that repeats it without Python."""

    def record(self, run: Record) -> tuple[Replay, Tensor]:
        """What repeats `run`, and the tensor that each repetition leaves its result in."""
        ...


class RmsNorm(Protocol):
    """weight * round(x / rms(x)) of x [rows, width]; first x += `add`, in place."""

    def __call__(self, x: Tensor, weight: Tensor, eps: float, *, add: Tensor | None = None) -> Tensor:
        """[rows, width] in x's dtype."""
        ...


class QuantizedProduct(Protocol):
    """x [M, K] times integers [N, K] and their scales (+ bias), see `telechat.ops.quantized`."""

    def __call__(
        self,
        x: Tensor,
        qweight: Tensor,
        scales: Tensor,
        *,
        bits: int,
        group_size: int,
        bias: Tensor | None = None,
    ) -> Tensor:
        """[M, N] in x's dtype."""
        ...


@dataclass(frozen=True)
class FusedKernels:
    """What a step is made of, besides the paged cache.

    Attributes:
        linear: (x [M, K], weight [N, K], bias [N] or None) -> [M, N].
        swiglu: (gate, up), each [M, F] with rows any distance apart -> silu(gate) * up.
        recorder: makes what records decoding steps; None where steps cannot be recorded.
    """

    name: str
    rms_norm: RmsNorm
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    quantized_linear: QuantizedProduct
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
