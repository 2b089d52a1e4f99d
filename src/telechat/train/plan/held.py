"""Weights, gradients and optimiser state of one rank: held between steps, and gathered to compute.

Reads the division of the parameter table that training itself uses. Knows nothing of activations.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from telechat.models.parameters import Parameter, parameter_table
from telechat.train.adapters import adapter_config
from telechat.train.config import LoraSection
from telechat.train.distributed.division import EMBEDDING, Cut, Division
from telechat.train.distributed.layout import Place
from telechat.train.plan.formats import Formats, formats_of, uses_master_copy
from telechat.train.plan.request import PlanRequest

_LAYER = re.compile(r"^transformer\.h\.(\d+)\.")
# DeepSpeed's ZeRO: gradients travel through a buffer of so many numbers, and so many weights of small modules
# are gathered ahead.
_BUCKET_NUMBERS = 500_000_000
_PREFETCHED_NUMBERS = 60_000_000
_FLOAT = 4


@dataclass(frozen=True)
class Held:
    """Bytes of one rank.

    Attributes:
        weights: on the device throughout.
        gathered: of blocks, on the device while they compute (FSDP, ZeRO-3).
        gathered_ends: of embedding and head, likewise.
        gradients: of the whole step, on the device.
        gradient_buffer: further bytes while gradients travel.
        optimiser: on the device.
        host_weights, host_gradients, host_optimiser: in the host's memory.
        head_gradient: of the head, before ranks divide it.
        late_gradients: of the first block, and of an embedding that is not the head: made last.
        checkpoint: a copy of what is trained and of the optimiser, made on the host to be written.
        casts: copies of weights in the format of products, if all blocks have theirs at once.
        block_casts: of the largest block alone.
        largest_trained: the largest trained tensor, in numbers.
    """

    weights: int
    gathered: int
    gathered_ends: int
    gradients: int
    gradient_buffer: int
    optimiser: int
    host_weights: int
    host_gradients: int
    host_optimiser: int
    head_gradient: int
    late_gradients: int
    checkpoint: int
    casts: int
    block_casts: int
    largest_trained: int


@dataclass(frozen=True)
class _Numbers:
    """Counts of numbers, not bytes: trained; frozen in linear layers, in the head, and elsewhere."""

    trained: int
    frozen: int
    head: int
    other: int

    @property
    def all(self) -> int:
        return self.trained + self.frozen + self.head + self.other

    def bytes(self, formats: Formats) -> float:
        kept = (self.trained + self.other) * formats.stored
        # The head of a rounded model stays in floats.
        return kept + self.frozen * formats.frozen + self.head * formats.compute


def hold(request: PlanRequest, rank: int) -> Held:
    """What one rank of a run holds."""
    layout, formats = request.layout, formats_of(request)
    table = parameter_table(request.config)
    division = Division(request.config, layout, {item.name: item.shape for item in table})
    place = layout.place(rank)
    whole = _counts(request, table, {item.name: _size(division, item.name, place) for item in table})
    held = {name: math.prod(cut.sizes) for name, cut in division.held(rank).items()}
    kept = _counts(request, table, {item.name: held.get(item.name, 0) for item in table})
    if not request.trains:
        return _inference(whole, formats)
    made = _deepspeed if uses_master_copy(request) else _fsdp
    share = made(request, formats, whole, kept, divides=division.divides_rows)
    weights_away, rest_away = share.weights_away, share.rest_away
    return Held(
        weights=0 if weights_away else round(share.weights),
        gathered=round(share.gathered),
        gathered_ends=round(share.gathered_ends),
        gradients=0 if rest_away else round(share.gradients),
        gradient_buffer=round(share.gradient_buffer),
        optimiser=0 if rest_away else round(share.optimiser),
        host_weights=round(share.weights) if weights_away else 0,
        host_gradients=round(share.gradients) if rest_away else 0,
        host_optimiser=round(share.optimiser) if rest_away else 0,
        head_gradient=round(whole.head_trained * formats.stored),
        late_gradients=round((whole.block.trained + whole.embedding_trained) * formats.stored),
        checkpoint=round(share.checkpoint),
        casts=whole.matrices * formats.compute if share.keeps_casts else 0,
        block_casts=whole.block_matrices * formats.compute if share.keeps_casts else 0,
        largest_trained=whole.largest_trained,
    )


def _size(division: Division, name: str, place: Place) -> int:
    """Numbers of a tensor's part on a rank while it computes."""
    if place.pp not in division.processes(name):
        return 0
    cut: Cut | None = division.cut(name, place)
    return 0 if cut is None else math.prod(cut.sizes)


@dataclass(frozen=True)
class _Counts:
    """Numbers of one rank: all blocks, the largest block, embedding with head and last norm."""

    blocks: _Numbers
    block: _Numbers
    ends: _Numbers
    matrices: int
    block_matrices: int
    largest_trained: int
    head_trained: int
    embedding_trained: int

    @property
    def trained(self) -> int:
        return self.blocks.trained + self.ends.trained


def _counts(request: PlanRequest, table: tuple[Parameter, ...], sizes: dict[str, int]) -> _Counts:
    groups: dict[str, list[Parameter]] = {}
    for item in table:
        match = _LAYER.match(item.name)
        groups.setdefault(match[1] if match else "", []).append(item)
    ends = _sum(request, groups.pop(""), sizes)
    blocks = [_sum(request, items, sizes) for items in groups.values()]
    matrices = [sum(sizes[item.name] for item in items if item.kind == "linear") for items in groups.values()]
    trained = {item.name: sizes[item.name] for item in table if _trains_all(request)}
    embedding = trained.get(EMBEDDING, 0)
    is_tied = request.config.tie_word_embeddings
    head = embedding if is_tied else trained.get("lm_head.weight", 0)
    return _Counts(
        blocks=_Numbers(
            sum(block.trained for block in blocks),
            sum(block.frozen for block in blocks),
            0,
            sum(block.other for block in blocks),
        ),
        block=max(blocks, key=lambda block: block.all),
        ends=ends,
        matrices=sum(matrices),
        block_matrices=max(matrices),
        largest_trained=max(trained.values(), default=0),
        head_trained=head,
        embedding_trained=0 if is_tied else embedding,
    )


def _trains_all(request: PlanRequest) -> bool:
    return request.trains and request.lora is None


def _sum(request: PlanRequest, items: list[Parameter], sizes: dict[str, int]) -> _Numbers:
    trained = frozen = head = other = 0
    for item in items:
        size = sizes[item.name]
        if _trains_all(request):
            trained += size
        elif item.kind == "linear":
            frozen += size
        elif item.kind == "head":
            head += size
        else:
            other += size
        if request.lora is not None and is_target(request, item) and size:
            trained += _adapter_size(request, item, size)
    return _Numbers(trained, frozen, head, other)


def is_target(request: PlanRequest, item: Parameter) -> bool:
    """Whether the adapter changes this tensor."""
    if request.lora is None or item.kind != "linear":
        return False
    return adapter_config(request.lora, base_model="").targets(item.name.removesuffix(".weight"))


def update_rank(lora: LoraSection, item: Parameter) -> int:
    """Rank of the update of a tensor."""
    return adapter_config(lora, base_model="").rank(item.name.removesuffix(".weight"))


def _adapter_size(request: PlanRequest, item: Parameter, size: int) -> int:
    """Numbers of the low-rank update of a part of a weight, which has its share of rows or columns."""
    assert request.lora is not None
    rows, columns = item.shape
    share = size / item.size
    # One side is cut with the weight, the other is whole; the longer side is taken to be the cut one.
    shared, whole = max(rows, columns), min(rows, columns)
    numbers = update_rank(request.lora, item) * (shared * share + whole)
    return round(numbers + (rows * share if request.lora.dora else 0))


def _inference(whole: _Counts, formats: Formats) -> Held:
    weights = whole.blocks.bytes(formats) + whole.ends.bytes(formats)
    return Held(round(weights), *([0] * 14))


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What an engine gives a rank, in bytes; `Held` says what the names mean.

    Attributes:
        weights_away, rest_away: weights, gradients and optimiser are in the host's memory.
        keeps_casts: autocast holds copies of the weights.
    """

    weights: float
    gradients: float
    optimiser: float
    checkpoint: float
    gathered: float
    gathered_ends: float
    gradient_buffer: float
    weights_away: bool
    rest_away: bool
    keeps_casts: bool


def _fsdp(request: PlanRequest, formats: Formats, whole: _Counts, kept: _Counts, *, divides: bool) -> _Share:
    """This project's own engines: FSDP where ranks divide anything, else everything in place."""
    layout = request.layout
    gathered = gathered_ends = buffer = 0.0
    if divides:
        block = whole.block.bytes(formats) * formats.compute / formats.stored
        # The next block's weights travel while this one computes.
        gathered = 2 * block if layout.zero_stage == 3 else block * len_blocks(whole)
        gathered_ends = whole.ends.bytes(formats)
        buffer = whole.block.trained * (formats.compute + formats.stored)
    gradients = (whole if divides and layout.zero_stage == 1 else kept).trained * formats.stored
    weights = kept.blocks.bytes(formats) + kept.ends.bytes(formats)
    # Muon has one moment for a matrix in a block; embedding and head are AdamW's, with two.
    ends_moments = 2 * formats.stored if request.optimizer == "muon" else formats.moments
    moments = kept.blocks.trained * formats.moments + kept.ends.trained * ends_moments
    is_away = layout.offload and divides
    return _Share(
        weights=weights,
        gradients=gradients,
        optimiser=moments,
        checkpoint=kept.trained * formats.stored + moments,
        gathered=gathered,
        gathered_ends=gathered_ends,
        gradient_buffer=buffer,
        weights_away=is_away,
        rest_away=is_away,
        keeps_casts=formats.casts and request.lora is None and not divides,
    )


def len_blocks(counts: _Counts) -> float:
    """How many blocks of the largest kind a rank's blocks are worth."""
    return counts.blocks.all / counts.block.all if counts.block.all else 0.0


def _deepspeed(
    request: PlanRequest, formats: Formats, whole: _Counts, kept: _Counts, *, divides: bool
) -> _Share:
    """DeepSpeed's ZeRO: stage 1 divides the optimiser, 2 also gradients, 3 also weights."""
    layout = request.layout
    stage = layout.zero_stage
    divided = kept if divides else whole
    weights = divided if stage == 3 else whole
    weight_bytes = weights.blocks.bytes(formats) + weights.ends.bytes(formats)
    gradients = (divided if stage >= 2 else whole).trained * formats.stored
    moments = (divided if stage >= 1 else whole).trained * formats.moments
    buffer = min(_BUCKET_NUMBERS, whole.trained) * formats.stored if stage else 0
    ahead = min(_PREFETCHED_NUMBERS, whole.block.trained + whole.block.frozen) * formats.stored
    return _Share(
        weights=weight_bytes,
        gradients=gradients,
        optimiser=moments,
        # Every rank is given whole tensors, in fp32.
        checkpoint=whole.trained * 3 * _FLOAT,
        gathered=ahead + whole.block.bytes(formats) if stage == 3 else 0,
        gathered_ends=whole.ends.bytes(formats) if stage == 3 else 0,
        gradient_buffer=buffer,
        weights_away=layout.offload and stage == 3,
        rest_away=layout.offload,
        keeps_casts=False,
    )
