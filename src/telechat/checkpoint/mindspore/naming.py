"""MindFormers' tensor names, from and to those of the parameter table.

Three layouts share the names: `kv_concat` (keys and values fused, interleaved by head, as in the official
torch files), `qkv_concat` (queries, keys and values fused, and gate with up projection), and the experts of a
mixture, stacked, which grouped matrix products want transposed (`gmm`). Works alike on whole tensors and on a
rank's slices. Knows no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from telechat.checkpoint.formats.lazy import LazyTensor, cast, cut, join, stack, transposed, with_shape
from telechat.checkpoint.names import EMBEDDING, HEAD
from telechat.errors import CheckpointError
from telechat.models import TeleChatConfig

_TOP = {
    EMBEDDING: "model.tok_embeddings.embedding_weight",
    "transformer.ln_f.weight": "model.norm_out.weight",
    HEAD: HEAD,
}
_LEAVES = {
    "input_layernorm.weight": "attention_norm.weight",
    "self_attention.query.weight": "attention.wq.weight",
    "self_attention.key_value.weight": "attention.wk_v.weight",
    "self_attention.dense.weight": "attention.wo.weight",
    "self_attention.dense.bias": "attention.wo.bias",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "mlp.down_proj.bias": "feed_forward.w2.bias",
    "mlp.router.weight": "feed_forward.router.dense.weight",
}
_EXPERT_LEAVES = {
    "gate_proj.weight": "feed_forward.ffn.w1.weight",
    "up_proj.weight": "feed_forward.ffn.w3.weight",
    "down_proj.weight": "feed_forward.ffn.w2.weight",
    "down_proj.bias": "feed_forward.ffn.w2.bias",
}
_TOP_BACK = {theirs: ours for ours, theirs in _TOP.items()}
_LEAVES_BACK = {theirs: ours for ours, theirs in _LEAVES.items()}
_EXPERT_LEAVES_BACK = {theirs: ours for ours, theirs in _EXPERT_LEAVES.items()}

_OUR_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)")
_OUR_EXPERT = re.compile(r"mlp\.local_experts\.(\d+)\.(.+)")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT_WEIGHT = re.compile(r"(.*\.)?feed_forward\.ffn\.w[123]\.weight")

_WQ, _WKV, _WQKV = "attention.wq.weight", "attention.wk_v.weight", "attention.w_qkv.weight"
_W1, _W3, _WGATE = "feed_forward.w1.weight", "feed_forward.w3.weight", "feed_forward.w_gate_hidden.weight"
_EXPERT_BIAS = "feed_forward.ffn.w2.bias"

# What a training checkpoint holds besides the model.
_STATE_PREFIXES = ("adam_m.", "adam_v.", "accu_grads.", "moments.", "moment1.", "moment2.")
_STATE_NAMES = frozenset(
    [
        "global_step",
        "epoch_num",
        "step_num",
        "learning_rate",
        "loss_scale",
        "scale_sense",
        "beta1_power",
        "beta2_power",
        "current_iterator_step",
        "last_overflow_iterator_step",
    ]
)
# Buffers of the parallel network, zero unless experts are balanced by them.
_ROUTER_BUFFERS = ("feed_forward.router.router.topk_bias", "feed_forward.router.e_score_correction_bias",
                   "feed_forward.router.router.e_score_correction_bias")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which of MindFormers' layouts.

    Attributes:
        qkv_concat: queries, keys and values in one tensor, gate and up projection in another.
        gmm: experts transposed and in float32, for grouped matrix products.
    """

    qkv_concat: bool = False
    gmm: bool = False


KV_CONCAT = Layout()


def is_mindspore(names: Iterable[str]) -> bool:
    """Whether tensor names are MindFormers'."""
    return any(name.startswith(("model.tok_embeddings.", "model.layers.")) and is_weight(name)
               and ".self_attn." not in name and ".mlp." not in name for name in names)  # fmt: skip


def is_weight(name: str) -> bool:
    """Whether a name is the model's, and not the optimiser's or a counter."""
    return not (name in _STATE_NAMES or name.startswith(_STATE_PREFIXES))


def plain_name(ours: str) -> str | None:
    """MindFormers' name of a tensor that both layouts have by itself; None for an expert's."""
    if ours in _TOP:
        return _TOP[ours]
    match = _OUR_LAYER.fullmatch(ours)
    leaf = _LEAVES.get(match[2]) if match else None
    return f"model.layers.{match[1]}.{leaf}" if match and leaf else None


def our_layer(theirs: str) -> str:
    """The parameter table's name, without `.weight`, of a layer of the kv_concat layout.

    Raises:
        CheckpointError: there is none.
    """
    name = f"{theirs}.weight"
    match = _LAYER.fullmatch(name)
    if name in _TOP_BACK:
        return _TOP_BACK[name].removesuffix(".weight")
    if match is None or match[2] not in _LEAVES_BACK:
        raise CheckpointError(f"{theirs} is no layer of a TeleChat model in the kv_concat layout.")
    return f"transformer.h.{match[1]}.{_LEAVES_BACK[match[2]]}".removesuffix(".weight")


def to_mindspore(
    tensors: Mapping[str, LazyTensor],
    config: TeleChatConfig,
    layout: Layout = KV_CONCAT,
    *,
    by_name: bool = True,
) -> dict[str, LazyTensor]:
    """A model's tensors under MindFormers' names, in the order of the official converter.

    Args:
        by_name: in the order of our names, as in safetensors; else in the order of `tensors`.

    Raises:
        CheckpointError: MindFormers has no place for a part of this model.
    """
    refuse_foreign(config)
    named: dict[str, LazyTensor] = {}
    experts: dict[str, dict[int, LazyTensor]] = {}
    for ours in sorted(tensors) if by_name else tensors:
        name = plain_name(ours)
        if name is not None:
            named[name] = tensors[ours]
            continue
        layer = _OUR_LAYER.fullmatch(ours)
        expert = _OUR_EXPERT.fullmatch(layer[2]) if layer else None
        assert layer and expert, ours
        stacked = f"model.layers.{layer[1]}.{_EXPERT_LEAVES[expert[2]]}"
        experts.setdefault(stacked, {})[int(expert[1])] = tensors[ours]
    for name, by_number in experts.items():
        parts = [by_number[number] for number in sorted(by_number)]
        if name.endswith(_EXPERT_BIAS):
            named[name] = join([with_shape(part, (1, 1, 1, *part.shape)) for part in parts], axis=1)
        else:
            named[name] = stack(parts)
    return arranged(named, config, layout)


def refuse_foreign(config: TeleChatConfig) -> None:
    """Raise for what MindFormers' network cannot compute."""
    for field in ("embed_layernorm", "residual_post_layernorm"):
        if getattr(config, field):
            raise CheckpointError(f"This model has {field}, which MindFormers does not have.")


def arranged(
    named: Mapping[str, LazyTensor], config: TeleChatConfig, layout: Layout
) -> dict[str, LazyTensor]:
    """Tensors in the kv_concat layout brought into another; whole, or a rank's slices."""
    result = dict(named)
    if layout.gmm:
        result = {
            name: gmm_form(tensor) if is_expert_weight(name) else tensor for name, tensor in named.items()
        }
    if not layout.qkv_concat:
        return result
    for layer in _layers(named):
        prefix = f"model.layers.{layer}."
        if prefix + _WQ in result:
            query, fused = result.pop(prefix + _WQ), result.pop(prefix + _WKV)
            keys, values = split_heads(fused, config.head_dim)
            result[prefix + _WQKV] = join([query, *keys, *values])
        if prefix + _W1 in result:
            result[prefix + _WGATE] = join([result.pop(prefix + _W1), result.pop(prefix + _W3)])
    return result


def is_expert_weight(name: str) -> bool:
    """Whether a tensor is one that the gmm form transposes."""
    return _EXPERT_WEIGHT.fullmatch(name) is not None


def gmm_form(tensor: LazyTensor) -> LazyTensor:
    """Stacked expert weights [E, out, in] as [E, in, out] float32."""
    return cast(transposed(tensor, 1, 2), torch.float32)


def split_heads(fused: LazyTensor, head_dim: int) -> tuple[list[LazyTensor], list[LazyTensor]]:
    """(rows of each head's key, of each head's value) of a fused tensor [heads * 2 * head_dim, hidden]."""
    num_heads = fused.shape[0] // (2 * head_dim)
    rows = [cut(fused, 0, number * head_dim, (number + 1) * head_dim) for number in range(2 * num_heads)]
    return rows[::2], rows[1::2]


def fuse_heads(keys: LazyTensor, values: LazyTensor, head_dim: int) -> LazyTensor:
    """The opposite of `split_heads`, from keys and values [heads * head_dim, hidden]."""
    parts = []
    for start in range(0, keys.shape[0], head_dim):
        parts += [cut(keys, 0, start, start + head_dim), cut(values, 0, start, start + head_dim)]
    return join(parts)


def unarranged(named: Mapping[str, LazyTensor], config: TeleChatConfig) -> dict[str, LazyTensor]:
    """Any layout brought into kv_concat; whole, or a rank's slices.

    Raises:
        CheckpointError: a fused tensor's rows do not fit the config's heads.
    """
    result: dict[str, LazyTensor] = {}
    for name, tensor in named.items():
        if name.endswith(_WQKV):
            prefix = name.removesuffix(_WQKV)
            result[prefix + _WQ], result[prefix + _WKV] = _split_qkv(name, tensor, config)
        elif name.endswith(_WGATE):
            prefix = name.removesuffix(_WGATE)
            half = tensor.shape[0] // 2
            result[prefix + _W1] = cut(tensor, 0, 0, half)
            result[prefix + _W3] = cut(tensor, 0, half, 2 * half)
        elif is_expert_weight(name) and _is_gmm(name, tensor, config):
            result[name] = transposed(tensor, 1, 2)
        else:
            result[name] = tensor
    return result


def _split_qkv(name: str, tensor: LazyTensor, config: TeleChatConfig) -> tuple[LazyTensor, LazyTensor]:
    units = config.num_heads + 2 * config.num_kv_heads
    rows, width = tensor.shape[0], config.head_dim
    kv_rows = rows * config.num_kv_heads // units
    if rows % width or rows * config.num_kv_heads % units or kv_rows % width:
        raise CheckpointError(
            f"{name} has {rows} rows; {config.num_heads} query heads and {config.num_kv_heads} key/value "
            f"heads of {width} rows do not divide it.",
            hint="Check n_head and num_key_value_heads of the config.",
        )
    query_rows = rows - 2 * kv_rows
    keys = cut(tensor, 0, query_rows, query_rows + kv_rows)
    values = cut(tensor, 0, query_rows + kv_rows, rows)
    return cut(tensor, 0, 0, query_rows), fuse_heads(keys, values, width)


def _is_gmm(name: str, tensor: LazyTensor, config: TeleChatConfig) -> bool:
    """Whether stacked experts are transposed, by where the hidden width is.

    Where a (slice of the) inner width is as large, this cannot be told: the training form is assumed.
    """
    hidden_dim = 1 if "w2." in name else 2
    return (
        tensor.shape[hidden_dim] != config.hidden_size and tensor.shape[3 - hidden_dim] == config.hidden_size
    )


def from_mindspore(named: Mapping[str, LazyTensor], config: TeleChatConfig) -> dict[str, LazyTensor]:
    """The model's tensors under the names of the parameter table; an optimiser's state is left out.

    Raises:
        CheckpointError: a tensor that no layout has, or heads that do not fit.
    """
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in unarranged(named, config).items():
        if not is_weight(name) or name.endswith(_ROUTER_BUFFERS):
            continue
        layer = _LAYER.fullmatch(name)
        leaf = layer[2] if layer else ""
        if name in _TOP_BACK:
            tensors[_TOP_BACK[name]] = tensor
        elif layer and leaf in _LEAVES_BACK:
            tensors[f"transformer.h.{layer[1]}.{_LEAVES_BACK[leaf]}"] = tensor
        elif layer and leaf in _EXPERT_LEAVES_BACK:
            tensors |= _unstacked(f"transformer.h.{layer[1]}.", leaf, tensor)
        else:
            is_lora = "lora_" in name.lower()
            raise CheckpointError(
                f"{name} is no tensor of a TeleChat model.",
                hint="Merge LoRA first: checkpoint merge-lora." if is_lora else "Look: checkpoint show.",
            )
    return tensors


def _unstacked(prefix: str, leaf: str, tensor: LazyTensor) -> dict[str, LazyTensor]:
    axis = 1 if leaf == _EXPERT_BIAS else 0
    ours = _EXPERT_LEAVES_BACK[leaf]
    shape = tensor.shape[-1:] if leaf == _EXPERT_BIAS else tensor.shape[1:]
    return {
        f"{prefix}mlp.local_experts.{number}.{ours}": with_shape(cut(tensor, axis, number, number + 1), shape)
        for number in range(tensor.shape[axis])
    }


def _layers(named: Iterable[str]) -> list[int]:
    return sorted({int(match[1]) for name in named if (match := _LAYER.fullmatch(name))})
