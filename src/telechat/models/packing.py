"""A model's weights in the layout of the CPU kernels.

Packed once, layer by layer; with `consume` each torch weight is given back as soon as its packed form exists,
so that a load holds no more than the model and one weight twice, or three times where bf16 is made compact.
Knows nothing of caches or steps.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from telechat.layers.int8 import DynamicInt8Linear, StaticInt8Linear
from telechat.layers.mlp import SwiGLU
from telechat.layers.moe import MixtureOfExperts
from telechat.layers.quantized import QuantizedLinear
from telechat.layers.sums import OutputSum
from telechat.models.adapters import HEAD, AdapterLayers
from telechat.models.decoder import DecoderBlock, TeleChatModel
from telechat.ops.cpu.adapters import PLACES, PackedAdapter, Place, Product
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.decoder import DecoderLayer
from telechat.ops.cpu.mixture import Expert, Mixture
from telechat.ops.cpu.weights import PackedWeight, WeightFormat

FORMATS: dict[torch.dtype, WeightFormat] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_QUANTISED_FORMATS: dict[int, WeightFormat] = {8: "int8", 4: "int4"}
_PLACES: dict[str, Place] = {
    "query": "query",
    "key_value": "key_value",
    "dense": "dense",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}
# bf16 is made compact from so many bytes of a model on. Smaller ones stay in a cache, which is faster than
# expanding; below AVX-512 expanding has no vector form.
_LARGE_MODEL_BYTES = 16 << 20
_EXPANDING_LEVELS = ("avx512", "amx")
# A tied embedding below this stays beside the packed head, since looking a row up there takes longer.
_LARGE_EMBEDDING_BYTES = 64 << 20


@dataclass(frozen=True)
class NativeWeights:
    """Everything a model knows, ready for the kernels.

    Attributes:
        model: for embedding, embedding norm and rotary tables; its other weights may be gone.
        num_heads, num_kv_heads: of this rank, where there are several.
        sums: over ranks, after attention and after the feed-forward; None where there is one.
        formats: how many products are stored as what, for people.
    """

    model: TeleChatModel
    context: Context
    layers: list[DecoderLayer]
    num_heads: int
    num_kv_heads: int
    sums: tuple[OutputSum, OutputSum] | None
    final_norm: Tensor
    head: PackedWeight
    formats: str


class PackedEmbedding(nn.Module):
    """An embedding that is looked up in a packed head, so that the two share their memory.

    Attributes:
        weight: empty; says the dtype and place of what was there.
    """

    def __init__(self, head: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.head = head
        self.weight = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """int64 ids [T] -> [T, hidden] in the dtype of the head."""
        return self.head.take_rows(token_ids)


def module_obstacle(name: str, module: nn.Module) -> str | None:
    """Why a module of a model cannot be packed, or None.

    Kernels read the weights: what others have put around or in place of a product would be lost.
    """
    hooks = [hook for hook in module._forward_hooks.values() if not isinstance(hook, OutputSum)]
    if hooks or module._forward_pre_hooks:
        return f"{name or 'the model'} has hooks"
    if isinstance(module, QuantizedLinear) and module.is_bound:
        return f"{name} has its product already"
    if isinstance(module, QuantizedLinear) and module.order is not None:
        return f"{name} takes its inputs in another order"
    products = ("query", "key_value", "dense", "gate_proj", "up_proj", "down_proj", "lm_head")
    known = (nn.Linear, QuantizedLinear, StaticInt8Linear, DynamicInt8Linear)
    if name.endswith(products) and type(module) not in known:
        return f"{name} is a {type(module).__name__}"
    if isinstance(module, MixtureOfExperts) and _local_experts(module) is None:
        return f"the experts of {name} on this rank do not stand together"
    return None


def pack_model(model: TeleChatModel, context: Context, *, consume: bool) -> NativeWeights:
    """Pack every product's weight; with `consume` the model cannot be called afterwards."""
    size = sum(weight.nbytes for weight in model.parameters())
    is_compact = size >= _LARGE_MODEL_BYTES and context.isa in _EXPANDING_LEVELS
    packer = _Packer(context, consume=consume, is_compact=is_compact)
    layers = [packer.layer(block) for block in model.transformer.blocks]
    first = model.transformer.blocks[0]
    sums = OutputSum.of(first.self_attention), OutputSum.of(first.mlp)
    head = packer.head(model)
    formats = ", ".join(f"{count} {name}" for name, count in sorted(packer.formats.items()))
    return NativeWeights(
        model,
        context,
        layers,
        first.self_attention.num_heads,
        first.self_attention.num_kv_heads,
        (sums[0], sums[1]) if sums[0] and sums[1] else None,
        _vector(model.transformer.ln_f.weight),
        head,
        formats,
    )


def pack_adapter(weights: NativeWeights, layers: AdapterLayers) -> PackedAdapter:
    """An adapter of a packed model; its matrices have the precision that the model is loaded in."""
    shapes: dict[Product, tuple[int, int]] = {None: (weights.head.rows, weights.head.columns)}
    for number, layer in enumerate(weights.layers):
        for place in PLACES:
            weight: PackedWeight | None = getattr(layer, place)
            if weight is not None:
                shapes[number, place] = weight.rows, weight.columns
    matrices = {_product(name): pair for name, pair in layers.items()}
    return PackedAdapter(weights.context, len(weights.layers), matrices, shapes, FORMATS[weights.model.dtype])


def _product(name: str) -> Product:
    """Which product of the kernels a layer of the parameter table is."""
    if name == HEAD:
        return None
    _, _, number, _, leaf = name.split(".")
    return int(number), _PLACES[leaf]


class _Packer:
    """Packs weights one by one and counts their formats; bf16 compactly or as it is."""

    def __init__(self, context: Context, *, consume: bool, is_compact: bool) -> None:
        self.context = context
        self.consume = consume
        self.is_compact = is_compact
        self.formats: Counter[str] = Counter()

    def layer(self, block: DecoderBlock) -> DecoderLayer:
        attention, feed_forward = block.self_attention, block.mlp
        mixture = self.mixture(feed_forward) if isinstance(feed_forward, MixtureOfExperts) else None
        dense = feed_forward if isinstance(feed_forward, SwiGLU) else None
        return DecoderLayer(
            query=self.linear(attention.query),
            key_value=self.linear(attention.key_value),
            dense=self.linear(attention.dense),
            input_norm=_vector(block.input_layernorm.weight),
            post_norm=_vector(block.post_attention_layernorm.weight),
            dense_bias=_bias(attention.dense),
            gate=self.linear(dense.gate_proj) if dense else None,
            up=self.linear(dense.up_proj) if dense else None,
            down=self.linear(dense.down_proj) if dense else None,
            down_bias=_bias(dense.down_proj) if dense else None,
            mixture=mixture,
        )

    def mixture(self, layer: MixtureOfExperts) -> Mixture:
        first, experts = _local_experts(layer) or (0, [])
        routing = layer.router.config
        return Mixture(
            router=PackedWeight.pack(self.context, layer.router.weight.float(), "float32"),
            experts=[
                Expert(
                    gate=self.linear(expert.gate_proj),
                    up=self.linear(expert.up_proj),
                    down=self.linear(expert.down_proj),
                    down_bias=_bias(expert.down_proj),
                )
                for expert in experts
            ],
            first_expert=first,
            num_experts_per_token=routing.num_experts_per_token,
            norm_topk_prob=routing.norm_topk_prob,
            routed_scaling_factor=routing.routed_scaling_factor,
        )

    def head(self, model: TeleChatModel) -> PackedWeight:
        """The output head; a tied one takes the embedding's place where that is large."""
        if model.has_own_head:
            return self.linear(model.lm_head)
        embedding = model.transformer.word_embeddings
        head = self.matrix(embedding.weight)
        if (
            self.consume
            and embedding.weight.nbytes >= _LARGE_EMBEDDING_BYTES
            and type(embedding) is nn.Embedding
        ):
            model.transformer.word_embeddings = PackedEmbedding(head, embedding.weight.dtype)  # type: ignore[assignment]
        return head

    def linear(self, linear: nn.Module) -> PackedWeight:
        if isinstance(linear, QuantizedLinear):
            return self.quantised(linear)
        if isinstance(linear, StaticInt8Linear | DynamicInt8Linear):
            return self.int8(linear)
        assert isinstance(linear, nn.Linear)
        packed = self.matrix(linear.weight)
        if self.consume:
            linear.weight = nn.Parameter(torch.empty(0, dtype=linear.weight.dtype), requires_grad=False)
        return packed

    def quantised(self, linear: QuantizedLinear) -> PackedWeight:
        stored, scheme = linear.stored, linear.scheme
        packed = PackedWeight.pack_quantised(
            self.context,
            stored.integers(),
            stored.scales,
            _QUANTISED_FORMATS[scheme.bits],
            scheme.group_size,
        )
        if self.consume:
            linear.release()
        self.formats[f"{packed.weight_format} in groups of {packed.group}"] += 1
        return packed

    def int8(self, linear: StaticInt8Linear | DynamicInt8Linear) -> PackedWeight:
        packed = PackedWeight.pack_w8a8(self.context, linear.stored)
        if self.consume:
            linear.release()
        self.formats[packed.weight_format] += 1
        return packed

    def matrix(self, weight_NK: Tensor) -> PackedWeight:
        weight_format = FORMATS[weight_NK.dtype]
        if self.is_compact and weight_format == "bfloat16":
            weight_format = "compact"
        packed = PackedWeight.pack(self.context, weight_NK, weight_format)
        is_compact = packed.weight_format == "compact"
        self.formats["bfloat16 in 12 bits" if is_compact else packed.weight_format] += 1
        return packed


def _local_experts(layer: MixtureOfExperts) -> tuple[int, list[SwiGLU]] | None:
    """(number of the first, experts) of those on this rank; None where they do not stand together."""
    held = [number for number, expert in enumerate(layer.local_experts) if isinstance(expert, SwiGLU)]
    if not held or held != list(range(held[0], held[-1] + 1)):
        return None
    return held[0], [expert for expert in layer.local_experts if isinstance(expert, SwiGLU)]


def _vector(weight: Tensor) -> Tensor:
    return weight.detach().float().contiguous()


def _bias(linear: nn.Module) -> Tensor | None:
    """What is added to a layer's results; the bias of int8 layers may be within their integers."""
    bias = getattr(linear, "bias", None)
    return _vector(bias) if isinstance(bias, Tensor) else None
