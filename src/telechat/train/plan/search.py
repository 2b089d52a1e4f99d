"""What fits: the longest length, and the nearest layout, for devices of a given size.

"Nearest" is the fewest devices first, then the least that slows a run down: dividing more among the ranks,
other axes, computing activations again, and the host's memory last. Knows nothing of how memory is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from telechat.errors import ConfigError
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.plan.predict import holdings, predict, predict_from
from telechat.train.plan.request import Plan, PlanRequest

# What an accelerator's allocator cannot use: pieces between tensors.
_ALLOCATOR_SHARE = 0.1
_LENGTH_STEP = 128
_MAX_LENGTH = 2**20
_MAX_DEVICES = 256
_TENSOR_RANKS = (1, 2, 4, 8)
_ZERO_STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)


@dataclass(frozen=True)
class Fit:
    """A run that fits, and its plan."""

    request: PlanRequest
    plan: Plan


def usable_bytes(device_bytes: int, *, on_accelerator: bool) -> int:
    """How much of a device's memory a plan may fill."""
    return round(device_bytes * (1 - _ALLOCATOR_SHARE)) if on_accelerator else device_bytes


def longest_length(request: PlanRequest, device_bytes: int) -> int:
    """The most tokens of a row, a multiple of 128, that fit; 0 if not even that many do."""
    usable = usable_bytes(device_bytes, on_accelerator=request.on_accelerator)

    held = holdings(request)

    def fits(steps: int) -> bool:
        return predict_from(replace(request, length=steps * _LENGTH_STEP), held).device_bytes <= usable

    low, high = 0, _MAX_LENGTH // _LENGTH_STEP + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * _LENGTH_STEP


def nearest_fit(request: PlanRequest, device_bytes: int, host_bytes: int) -> Fit | None:
    """The nearest run that fits devices of this size: `request` itself if it does; None if none does.

    Args:
        host_bytes: memory of the host for each process.
    """
    usable = usable_bytes(device_bytes, on_accelerator=request.on_accelerator)
    if request.program_bytes > usable:
        return None
    for candidate in _candidates(request):
        try:
            plan = predict(candidate)
        except ConfigError:  # a layout that this model cannot be spread over
            continue
        if plan.device_bytes <= usable and plan.host_bytes <= host_bytes:
            return Fit(candidate, plan)
    return None


def _candidates(request: PlanRequest) -> Iterator[PlanRequest]:
    """Runs from near to far, the given one first."""
    yield request
    world_size = request.layout.world_size
    while world_size <= _MAX_DEVICES:
        for changed in _savings(request):
            for layout in _layouts(changed, world_size):
                yield _with_layout(changed, layout)
        world_size *= 2


def _savings(request: PlanRequest) -> Iterator[PlanRequest]:
    """The run, and then with less memory at the price of time."""
    yield request
    if not request.trains:
        return
    if request.recompute != "full":
        yield replace(request, recompute="full")
    layout = request.layout
    if not layout.offload:
        away = replace(layout, offload=True, zero_stage=max(1, layout.zero_stage))
        yield replace(request, recompute="full", layout=away)


def _layouts(request: PlanRequest, world_size: int) -> Iterator[ParallelLayout]:
    """Ways to use so many devices: the given axes with more data ranks first, then other tensor and pipeline
    ranks. Beyond one device, ranks of data divide weights, gradients and optimiser."""
    given = request.layout
    if not request.trains:
        if world_size in _TENSOR_RANKS:
            yield ParallelLayout(dp=1, tp=world_size, zero_stage=0)
        return
    others = given.num_model_ranks * given.ep
    if world_size % others == 0:
        for zero_stage in _ZERO_STAGES[given.zero_stage :]:
            yield replace(given, dp=world_size // others, zero_stage=zero_stage)
    if given.engine == "deepspeed":
        return
    for pp in (1, 2, 4, 8, 16):
        for tp in _TENSOR_RANKS:
            ranks = tp * pp * given.cp * given.ep
            if world_size % ranks == 0 and (tp, pp) != (given.tp, given.pp):
                yield replace(
                    given,
                    dp=world_size // ranks,
                    tp=tp,
                    pp=pp,
                    zero_stage=3,
                    pp_offset=(),
                    pp_interleave=1,
                )


def _with_layout(request: PlanRequest, layout: ParallelLayout) -> PlanRequest:
    """The run on another layout; a pipeline needs as many micro batches as it has processes."""
    return replace(request, layout=layout, micro_batches=max(request.micro_batches, layout.pp))
