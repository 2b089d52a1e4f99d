"""Fused kernels in plain torch and a recorder that records nothing: the fused executor without a device."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from telechat.ops.cpu.norm import rms_norm_reference
from telechat.ops.cpu.swiglu import swiglu_reference
from telechat.ops.fused import FusedKernels, Projection, Replay
from telechat.ops.quantized import QuantizedWeight


class PretendRecorder:
    """Repeats the run, as a graph would."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, run: Callable[[], None]) -> Replay:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


def _bind_linear(weight: Tensor, bias: Tensor | None, *, gated: bool = False) -> Projection:
    def product(x: Tensor) -> Tensor:
        out = F.linear(x, weight, bias)
        return swiglu_reference(*out.chunk(2, dim=1)) if gated else out

    return product


def _bind_quantized(weight: QuantizedWeight, bias: Tensor | None, *, gated: bool = False) -> Projection:
    return _bind_linear(weight.dequantise(torch.float32), bias, gated=gated)


def plain_kernels(recorder: PretendRecorder | None = None) -> FusedKernels:
    return FusedKernels(
        name="plain",
        rms_norm=rms_norm_reference,
        bind_linear=_bind_linear,
        bind_quantized=_bind_quantized,
        swiglu=swiglu_reference,
        recorder=None if recorder is None else lambda: recorder,
        reason="in a test",
    )
