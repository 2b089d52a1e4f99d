"""TeleChat1-52B: its torch files in GPT-2's names, its MindSpore files, and the parameter table.

The 52B has no biases and divides its logits by 32. In the table the biases are zeros and the head is divided
instead, which is exact, so that it runs as any other model. In its MindSpore files queries, keys and values
are one tensor, gate and up projection another, with rows in an order that fits one number of ranks. Knows no
files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from telechat.checkpoint.formats.lazy import LazyTensor, cut, join, mapped, transposed, zeros
from telechat.checkpoint.mindspore.naming import split_heads
from telechat.checkpoint.names import EMBEDDING, HEAD
from telechat.errors import CheckpointError, UsageError
from telechat.models import TeleChatConfig

LOGIT_DIVISOR = 32
_QKV, _GATE, _OUT_BIAS = "attention.w_qkv.weight", "feed_forward.w_gate_hidden.weight", "attention.wo.bias"
_GPT2_EMBEDDING = "transformer.wte.weight"
_GPT2_DROPPED = (".attn.bias", ".attn.masked_bias")
# Leaf of a torch file -> leaf of a MindSpore file, and whether it is stored transposed.
_GPT2_LEAVES = {
    "ln_1.weight": ("attention_norm.weight", False),
    "attn.c_attn.weight": (_QKV, True),
    "attn.c_proj.weight": ("attention.wo.weight", True),
    "ln_2.weight": ("ffn_norm.weight", False),
    "mlp.c_fc.weight": (_GATE, True),
    "mlp.c_proj.weight": ("feed_forward.w2.weight", True),
}


@dataclass(frozen=True)
class RowOrder:
    """In which order a MindSpore file has the rows of its fused tensors.

    Attributes:
        num_ranks: contiguous slices for so many ranks each hold queries, keys, values of their heads.
        by_head: each head's query, key and value together, as the official converter leaves them for one
            rank; the network does not expect it.
    """

    num_ranks: int = 1
    by_head: bool = False

    def of_heads(self, num_heads: int) -> list[tuple[int, int]]:
        """(0 query, 1 key, 2 value; head) of each block of rows."""
        if self.by_head:
            return [(part, head) for head in range(num_heads) for part in range(3)]
        share = num_heads // self.num_ranks
        ranks = [range(rank * share, (rank + 1) * share) for rank in range(self.num_ranks)]
        return [(part, head) for heads in ranks for part in range(3) for head in heads]

    def of_halves(self) -> list[tuple[int, int]]:
        """(0 gate, 1 up; share) of each block of rows of the feed-forward tensor."""
        return [(part, rank) for rank in range(self.num_ranks) for part in range(2)]


PLAIN = RowOrder()


def parse_row_order(text: str) -> RowOrder:
    """A number of ranks, or `heads`.

    Raises:
        UsageError: anything else.
    """
    if text == "heads":
        return RowOrder(by_head=True)
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{text!r} is no row order.", hint="Give a number of ranks, or heads.")
    return RowOrder(int(text))


def is_gpt2(names: Iterable[str]) -> bool:
    """Whether tensor names are those of the 52B's torch files."""
    return _GPT2_EMBEDDING in set(names)


def is_mindspore_52b(names: Iterable[str]) -> bool:
    """Whether tensor names are those of a MindSpore file of the 52B: fused, and without biases."""
    found = list(names)
    return any(name.endswith(_QKV) for name in found) and not any(name.endswith(_OUT_BIAS) for name in found)


def from_gpt2(stored: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of a torch file under MindFormers' names, rows in the plain order."""
    top = {
        _GPT2_EMBEDDING: "model.tok_embeddings.embedding_weight",
        "transformer.ln_f.weight": "model.norm_out.weight",
        HEAD: HEAD,
    }
    named: dict[str, LazyTensor] = {}
    for name, tensor in stored.items():
        match = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", name)
        if name.endswith(_GPT2_DROPPED):
            continue
        if name in top:
            named[top[name]] = tensor
        elif match and match[2] in _GPT2_LEAVES:
            leaf, is_transposed = _GPT2_LEAVES[match[2]]
            named[f"model.layers.{match[1]}.{leaf}"] = transposed(tensor) if is_transposed else tensor
        else:
            raise CheckpointError(f"{name} is no tensor of a TeleChat1-52B.")
    return named


def reordered(
    named: Mapping[str, LazyTensor], config: TeleChatConfig, order: RowOrder
) -> dict[str, LazyTensor]:
    """A MindSpore file's tensors with the rows of fused ones brought into the plain order."""
    result = dict(named)
    for name, tensor in named.items():
        if name.endswith(_QKV):
            blocks = _blocks(name, tensor, order.of_heads(config.num_heads))
            result[name] = join([blocks[place] for place in PLAIN.of_heads(config.num_heads)])
        elif name.endswith(_GATE):
            blocks = _blocks(name, tensor, order.of_halves())
            wanted = [(part, share) for part in range(2) for share in range(order.num_ranks)]
            result[name] = join([blocks[place] for place in wanted])
    return result


def _blocks(
    name: str, tensor: LazyTensor, places: list[tuple[int, int]]
) -> dict[tuple[int, int], LazyTensor]:
    size, rest = divmod(tensor.shape[0], len(places))
    if rest:
        raise CheckpointError(
            f"{name} has {tensor.shape[0]} rows, which are no {len(places)} equal blocks.",
            hint="Check n_head of the config, and --row-order.",
        )
    return {place: cut(tensor, 0, n * size, (n + 1) * size) for n, place in enumerate(places)}


def completed(tensors: Mapping[str, LazyTensor], config: TeleChatConfig) -> dict[str, LazyTensor]:
    """A 52B's tensors under our names made a model of the table: zero biases, the head divided."""
    dtype = tensors[EMBEDDING].dtype
    result = dict(tensors)
    for layer in range(config.num_layers):
        for leaf in ("self_attention.dense.bias", "mlp.down_proj.bias"):
            result[f"transformer.h.{layer}.{leaf}"] = zeros((config.hidden_size,), dtype)
    result[HEAD] = mapped(tensors[HEAD], lambda rows: rows / LOGIT_DIVISOR)
    return result


def to_mindspore_52b(
    tensors: Mapping[str, LazyTensor], config: TeleChatConfig, order: RowOrder = PLAIN
) -> dict[str, LazyTensor]:
    """The opposite of `completed`, under MindFormers' names and in the order of the official converter.

    Raises:
        CheckpointError: heads or inner width cannot be shared by so many ranks.
    """
    for what, extent in (("query heads", config.num_heads), ("inner width", config.ffn_hidden_size)):
        if extent % order.num_ranks:
            raise CheckpointError(f"{extent} ({what}) cannot be shared by {order.num_ranks} ranks.")
    named = {"model.tok_embeddings.embedding_weight": tensors[EMBEDDING]}
    share = config.ffn_hidden_size // order.num_ranks
    for layer in range(config.num_layers):
        ours, theirs = f"transformer.h.{layer}.", f"model.layers.{layer}."
        query = tensors[f"{ours}self_attention.query.weight"]
        width = config.head_dim
        queries = [cut(query, 0, n * width, (n + 1) * width) for n in range(config.num_heads)]
        heads = (queries, *split_heads(tensors[f"{ours}self_attention.key_value.weight"], width))
        halves = [tensors[f"{ours}mlp.{half}_proj.weight"] for half in ("gate", "up")]
        named[f"{theirs}attention_norm.weight"] = tensors[f"{ours}input_layernorm.weight"]
        named[theirs + _QKV] = join([heads[part][n] for part, n in order.of_heads(config.num_heads)])
        named[f"{theirs}attention.wo.weight"] = tensors[f"{ours}self_attention.dense.weight"]
        named[f"{theirs}ffn_norm.weight"] = tensors[f"{ours}post_attention_layernorm.weight"]
        named[theirs + _GATE] = join(
            [cut(halves[part], 0, n * share, (n + 1) * share) for part, n in order.of_halves()]
        )
        named[f"{theirs}feed_forward.w2.weight"] = tensors[f"{ours}mlp.down_proj.weight"]
    named["model.norm_out.weight"] = tensors["transformer.ln_f.weight"]
    named[HEAD] = mapped(tensors[HEAD], lambda rows: rows * LOGIT_DIVISOR)
    return named
