"""What one block keeps for its backward pass, and what computing it takes beside that.

Bytes of one micro batch on one rank, counted operation by operation from this project's modules. Symbols: N
tokens of a rank, h hidden, f feed-forward, c, r bytes of a product's and of the stream's numbers (`Formats`).
Knows nothing of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from telechat.models.parameters import parameter_table
from telechat.train.plan.formats import Formats, formats_of
from telechat.train.plan.held import is_target, update_rank
from telechat.train.plan.request import PlanRequest

_FLOAT = 4


@dataclass(frozen=True)
class Sizes:
    """Extents of one rank's share of a micro batch.

    Attributes:
        tokens: N; with cp each rank has its share of every row.
        stream_tokens: tokens between layers, which tp divides too.
        length: of a row, whole: keys that a token may see.
        rows: of a micro batch.
        hidden, heads, kv_heads, head_dim, ffn: of this rank.
        experts_per_token: 1 for a dense model.
    """

    tokens: int
    stream_tokens: int
    length: int
    rows: int
    hidden: int
    heads: float
    kv_heads: float
    head_dim: int
    ffn: float
    experts_per_token: int

    @property
    def scores(self) -> float:
        """Scores of one layer: every token's queries with every key."""
        return self.heads * self.tokens * self.length


def sizes_of(request: PlanRequest) -> Sizes:
    """The extents of a run."""
    config, layout = request.config, request.layout
    tokens = request.rows * -(-request.length // layout.cp)
    return Sizes(
        tokens=tokens,
        stream_tokens=-(-tokens // layout.tp),
        length=request.length,
        rows=request.rows,
        hidden=config.hidden_size,
        heads=config.num_heads / layout.tp,
        kv_heads=max(1.0, config.num_kv_heads / layout.tp),
        head_dim=config.head_dim,
        ffn=config.ffn_hidden_size / layout.tp,
        experts_per_token=config.moe.num_experts_per_token if config.moe else 1,
    )


@dataclass(frozen=True)
class BlockMemory:
    """Bytes of one block.

    Attributes:
        kept: between its forward and its backward pass.
        computing: beside `kept`, at most while it is computed again and backward.
        shared: of all blocks together, throughout: masks.
    """

    kept: float
    computing: float
    shared: float


def block_memory(request: PlanRequest) -> BlockMemory:
    """The memory of a block of this run."""
    sizes, formats = sizes_of(request), formats_of(request)
    saved = saved_bytes(request, sizes, formats)
    working = working_bytes(request, sizes, formats)
    shared = _mask_bytes(request, sizes, formats)
    block_input = sizes.stream_tokens * sizes.hidden * formats.stream
    if request.recompute == "full":
        return BlockMemory(block_input, saved - block_input + working, shared)
    if request.recompute == "selective":
        kept = min(saved, block_input + _product_outputs(request, sizes, formats))
        return BlockMemory(kept, saved + working - kept * 0.5, shared)
    return BlockMemory(saved, working, shared)


def saved_bytes(request: PlanRequest, sizes: Sizes, formats: Formats) -> float:
    """What a block's operations save for the backward pass, its input included."""
    return (
        2 * _norm(request, sizes, formats)
        + _attention(request, sizes, formats)
        + _feed_forward(request, sizes, formats)
        + _dropout(request, sizes, formats)
        + _adapters(request, sizes, formats)
    )


def _norm(request: PlanRequest, s: Sizes, formats: Formats) -> float:
    """A norm: its input in fp32, and what is multiplied by the weight where that is trained."""
    return s.stream_tokens * s.hidden * (_FLOAT + (0 if request.lora else formats.stream))


def _attention(request: PlanRequest, s: Sizes, formats: Formats) -> float:
    c = formats.compute
    width, kv_width = s.heads * s.head_dim, s.kv_heads * s.head_dim
    inputs = _inputs(request, s, formats, ("query", "key_value"))
    if holds_scores(request):
        # Queries, keys and values for every head, the result.
        return inputs + 4 * s.tokens * width * c + s.scores * _saved_score_bytes(request, c)
    # Rotated queries and keys, the fused keys and values (the values are a part of them), the result.
    kept = s.tokens * c * (width + kv_width + 2 * kv_width + width)
    return inputs + kept + _FLOAT * s.tokens * s.heads


def _saved_score_bytes(request: PlanRequest, c: int) -> int:
    """What a score leaves behind: its probability in fp32, rounded, and after dropout."""
    dropped = (c + (1 if request.on_accelerator else c)) if request.config.attention_dropout else 0
    # Fused dropout remembers its choice, not its input.
    is_rounded = c != _FLOAT and not (dropped and request.on_accelerator)
    return _FLOAT + (c if is_rounded else 0) + dropped


def _working_score_bytes(request: PlanRequest, c: int) -> int:
    """What a score takes for a moment, beside that."""
    if request.program == "original":
        # Its names keep the product, the scores in fp32, the masked ones and the rounded probabilities until
        # the layer is done.
        return c + _FLOAT + _FLOAT + c
    # The gradients of the probabilities and of the scores, in fp32; the rounded probabilities are free.
    return 2 * _FLOAT if c == _FLOAT else 2 * _FLOAT - c


def holds_scores(request: PlanRequest) -> bool:
    """Whether a layer's scores exist as a whole; on a CPU dropout on them has no other form."""
    has_dropout = request.config.attention_dropout > 0 and request.trains
    return request.attention == "reference" or (has_dropout and not request.on_accelerator)


def _feed_forward(request: PlanRequest, s: Sizes, formats: Formats) -> float:
    c, k = formats.compute, s.experts_per_token
    # Outputs of gate and up, of the activation, and their product where the last layer is trained.
    num_inner = 4 if request.lora is None or "down_proj" in _trained_layers(request) else 3
    inner = num_inner * s.tokens * k * s.ffn * c
    if request.config.moe is None:
        return _inputs(request, s, formats, ("gate_proj", "up_proj")) + inner
    # Each token's row for each of its experts, its casts, and the expert's answer before it is weighed.
    rows = s.tokens * k * s.hidden
    return (
        inner
        + rows * (formats.stream + (2 * c if formats.casts else 0) + c)
        + s.tokens * s.hidden * formats.stream
    )


def _inputs(request: PlanRequest, s: Sizes, formats: Formats, layers: tuple[str, ...]) -> float:
    """What products save of their common input: a copy each where it is cast, else one."""
    num_needed = len(layers)
    if request.lora is not None:
        num_needed = len(_trained_layers(request) & set(layers))
    copies = num_needed if formats.casts else min(1, num_needed)
    return copies * s.tokens * s.hidden * formats.compute


def _trained_layers(request: PlanRequest) -> set[str]:
    """Ends of the names of the layers that an adapter changes."""
    items = [item for item in parameter_table(request.config) if ".h.0." in item.name]
    return {item.name.split(".")[-2] for item in items if is_target(request, item)}


def _dropout(request: PlanRequest, s: Sizes, formats: Formats) -> float:
    if not request.config.hidden_dropout:
        return 0.0
    return 2 * s.stream_tokens * s.hidden * (1 if request.on_accelerator else formats.compute)


def _adapters(request: PlanRequest, s: Sizes, formats: Formats) -> float:
    """The inner numbers of each update; with DoRA the layer's output as well."""
    if request.lora is None:
        return 0.0
    total = 0.0
    for item in parameter_table(request.config):
        if ".h.0." in item.name and is_target(request, item):
            share = s.ffn / request.config.ffn_hidden_size
            outputs = item.shape[0] * (share if item.axes[0] != "hidden" else 1)
            inner = update_rank(request.lora, item)
            total += s.tokens * formats.compute * (inner + (outputs if request.lora.dora else 0))
    return total


def _product_outputs(request: PlanRequest, s: Sizes, formats: Formats) -> float:
    """What products and attention give: kept where all else is computed again."""
    width, kv_width = s.heads * s.head_dim, s.kv_heads * s.head_dim
    attention = 2 * width + 2 * kv_width + s.hidden
    feed_forward = s.experts_per_token * (2 * s.ffn + s.hidden)
    return s.tokens * (formats.compute * (attention + feed_forward) + _FLOAT * s.heads)


def working_bytes(request: PlanRequest, s: Sizes, formats: Formats) -> float:
    """Gradients and copies of one block's backward pass at its widest, beside what was saved."""
    c, r = formats.compute, formats.stream
    stream = s.stream_tokens * s.hidden * r
    # Gradients of the product and of its two factors, the product itself being free by then.
    feed_forward = 2 * s.tokens * s.experts_per_token * s.ffn * c + 2 * stream + s.tokens * s.hidden * c
    width = s.heads * s.head_dim
    # Gradients of queries, keys and values; the rotation works in fp32.
    attention = s.tokens * width * (3 * c + 3 * _FLOAT) + 2 * stream
    if holds_scores(request):
        attention += s.scores * _working_score_bytes(request, c)
    # What the feed-forward part saved is free by then.
    attention -= _feed_forward(request, s, formats) + _norm(request, s, formats)
    return max(feed_forward, attention)


def _mask_bytes(request: PlanRequest, s: Sizes, formats: Formats) -> float:
    if not request.packed:
        return 0.0
    return s.rows * float(s.length) ** 2 * formats.compute


def final_norm_bytes(request: PlanRequest) -> float:
    """What the last norm keeps, the stream itself included."""
    s, formats = sizes_of(request), formats_of(request)
    return _norm(request, s, formats) + s.stream_tokens * s.hidden * formats.stream
