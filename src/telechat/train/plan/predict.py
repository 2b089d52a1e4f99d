"""The memory of a run: every rank that may be the fullest, at every moment that may be the worst.

Knows nothing of how much memory there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from telechat.train.distributed.division import check_fit
from telechat.train.distributed.layout import Place
from telechat.train.distributed.stages import layer_counts
from telechat.train.plan.activations import block_memory, final_norm_bytes, sizes_of
from telechat.train.plan.formats import formats_of
from telechat.train.plan.held import Held, hold
from telechat.train.plan.logits import logits_bytes
from telechat.train.plan.request import ROW_NAMES, Plan, PlanRequest, Row, RowName

_FLOAT = 4
# Copies of the largest matrix in fp32 while it is updated: its moments and the change, and what rounds the
# moments to 8 bits; the orthogonal form of Muon's gradient.
_EIGHT_BIT_COPIES = 11
_MUON_COPIES = 4
# Scores and probabilities stand beside the logits while tokens are drawn.
_DRAWING_COPIES = 3


def predict(request: PlanRequest) -> Plan:
    """The plan of the rank that needs most.

    Raises:
        ConfigError: the layout does not fit the model.
    """
    return predict_from(request, holdings(request))


def holdings(request: PlanRequest) -> dict[int, Held]:
    """What the ranks that differ hold, by rank; the same at every length.

    Raises:
        ConfigError: the layout does not fit the model.
    """
    check_fit(request.config, request.layout)
    return {rank: hold(request, rank) for rank in _different_ranks(request)}


def predict_from(request: PlanRequest, held: Mapping[int, Held]) -> Plan:
    """As `predict`, with what ranks hold at hand."""
    plans = [_worst_moment(request, rank, held[rank]) for rank in held]
    return max(plans, key=lambda plan: plan.device_bytes)


def _different_ranks(request: PlanRequest) -> list[int]:
    """The first rank of each pipeline process: others differ by rounding only."""
    layout = request.layout
    if not request.trains:
        return [0]
    places = [layout.place(rank) for rank in range(layout.world_size)]
    wanted = [Place(pp=process, ep=0, dp=0, cp=0, tp=0) for process in range(layout.pp)]
    return [places.index(place) for place in wanted]


def _worst_moment(request: PlanRequest, rank: int, held: Held) -> Plan:
    moments = _training(request, held, rank) if request.trains else _generating(request, held)
    found = []
    for moment, device in moments:
        rows = {**device, "program": request.program_bytes}
        found.append(Plan(rows=_rows(request, rows, held), moment=moment, rank=rank))
    return max(found, key=lambda plan: plan.device_bytes)


Moment = tuple[str, dict[RowName, float]]


def _rows(request: PlanRequest, device: dict[RowName, float], held: Held) -> tuple[Row, ...]:
    host: dict[RowName, int] = {
        "weights": held.host_weights,
        "gradients": held.host_gradients,
        "optimiser": held.host_optimiser,
        "checkpoint": held.checkpoint if request.on_accelerator else 0,
    }
    return tuple(Row(name, round(device.get(name, 0)), host.get(name, 0)) for name in ROW_NAMES)


def _training(request: PlanRequest, held: Held, rank: int) -> Iterator[Moment]:
    """The moments of a step that can be the worst, with what is on the device then."""
    process = request.layout.place(rank).pp
    layers = sum(row[process] for row in layer_counts(request.config.num_layers, request.layout))
    block = block_memory(request)
    kept = _in_flight(request, process) * layers * block.kept + block.shared
    base: dict[RowName, float] = {
        "weights": held.weights + held.gathered + held.gathered_ends,
        "optimiser": held.optimiser,
    }
    # Later micro batches find all gradients of the step there, and make theirs beside them.
    is_single = request.micro_batches == 1
    gradients = 0.0 if is_single else float(held.gradients)
    if process == request.layout.pp - 1:
        kept += final_norm_bytes(request)
        yield from _at_the_head(request, held, kept, base, gradients)
        gradients += held.head_gradient
    block_casts = held.casts if request.recompute == "none" else held.block_casts
    yield (
        "the backward pass begins",
        {
            **base,
            "weights": base["weights"] + block_casts,
            "gradients": gradients + held.gradient_buffer,
            "activations": kept + block.computing,
            "logits": _left_logits(request),
        },
    )
    late = held.late_gradients if is_single else 0
    yield (
        "the backward pass is at the first layer",
        {
            **base,
            "weights": base["weights"] + held.block_casts,
            "gradients": max(0, held.gradients - late) + held.gradient_buffer,
            "activations": block.shared + block.kept + block.computing,
            "logits": _left_logits(request),
        },
    )
    doubled = held.head_gradient if request.config.tie_word_embeddings or not is_single else 0
    yield ("the backward pass ends", {**base, "gradients": held.gradients + doubled})
    yield (
        "the optimiser steps",
        {**base, "gradients": held.gradients, "activations": _step_bytes(request, held)},
    )
    if not request.on_accelerator:
        # Written while training goes on, but in less time than a step takes to reach its worst moment.
        yield (
            "a checkpoint is copied",
            {**base, "gradients": held.gradients, "checkpoint": float(held.checkpoint)},
        )


def _at_the_head(
    request: PlanRequest, held: Held, kept: float, base: dict[RowName, float], gradients: float
) -> Iterator[Moment]:
    """The forward pass at its end, with the casts of all weights, and the backward pass at its beginning."""
    forward, backward = logits_bytes(request)
    weights = base["weights"]
    yield (
        "the forward pass reaches the head",
        {
            **base,
            "weights": weights + held.casts,
            "gradients": gradients,
            "activations": kept,
            "logits": forward,
        },
    )
    yield (
        "the backward pass leaves the head",
        {
            **base,
            "weights": weights + (held.casts if request.recompute == "none" else 0),
            "gradients": gradients + held.head_gradient,
            "activations": kept,
            "logits": backward,
        },
    )


def _left_logits(request: PlanRequest) -> float:
    """The original program holds its logits until the step ends."""
    return logits_bytes(request)[1] / 4 if request.program == "original" else 0.0


def _in_flight(request: PlanRequest, process: int) -> float:
    """Micro batches whose activations a process of the pipeline holds at once, in shares of its layers."""
    layout = request.layout
    rounds = layout.pp_interleave
    if layout.pp == 1:
        return 1.0
    if rounds == 1:
        return min(request.micro_batches, layout.pp - process)
    stages = 2 * (layout.pp - process - 1) + (rounds - 1) * layout.pp + 1
    return min(request.micro_batches * rounds, stages) / rounds


def _step_bytes(request: PlanRequest, held: Held) -> float:
    copies = {"adamw": 0, "adamw-8bit": _EIGHT_BIT_COPIES, "muon": _MUON_COPIES}[request.optimizer]
    return float(copies * _FLOAT * held.largest_trained)


def _generating(request: PlanRequest, held: Held) -> Iterator[Moment]:
    """A whole cache, and a step over the longest prompt or the fullest batch."""
    sizes, formats = sizes_of(request), formats_of(request)
    width = 2 * sizes.kv_heads * sizes.head_dim * formats.compute
    cache = request.config.num_layers * request.rows * request.length * width
    step = min(request.length * request.rows, 8192)
    numbers = 5 * sizes.hidden + 2 * sizes.kv_heads * sizes.head_dim + 2 * sizes.ffn
    logits = _DRAWING_COPIES * _FLOAT * request.rows * request.config.vocab_size / request.layout.tp
    yield (
        "a full batch",
        {
            "weights": held.weights,
            "cache": cache,
            "activations": step * numbers * formats.compute,
            "logits": logits,
        },
    )
