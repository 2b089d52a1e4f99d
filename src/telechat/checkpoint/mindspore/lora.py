"""LoRA matrices in MindFormers checkpoints: found, merged into their weights, or taken out as an adapter.

Three spellings are in use: `X.mindpet_delta_lora_a`, the same with `_A`, and `X.lora_A.weight`, each beside
`X.weight`. Merging works on MindFormers' names and needs no config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from telechat.checkpoint.adapter import Adapter, LowRank
from telechat.checkpoint.adapter_config import AdapterConfig
from telechat.checkpoint.formats.lazy import LazyTensor, mapped
from telechat.checkpoint.mindspore.container import Value, renamed
from telechat.checkpoint.mindspore.naming import is_weight, our_layer
from telechat.errors import CheckpointError

_MATRIX = re.compile(r"(.+)\.(?:mindpet_delta_lora_([abAB])|lora_([AB])\.weight)")


def find_lora(values: Mapping[str, Value]) -> dict[str, tuple[LazyTensor, LazyTensor]]:
    """Layer -> its matrices (A [r, in], B [out, r]); an optimiser's moments of them are not among these.

    Raises:
        CheckpointError: one of the two is missing, or they do not fit each other.
    """
    halves: dict[str, dict[str, LazyTensor]] = {}
    for name, value in values.items():
        match = _MATRIX.fullmatch(name)
        if match and is_weight(name):
            halves.setdefault(match[1], {})[(match[2] or match[3]).lower()] = value.tensor
    found = {}
    for layer, matrices in halves.items():
        if set(matrices) != {"a", "b"} or matrices["a"].shape[0] != matrices["b"].shape[1]:
            raise CheckpointError(f"The LoRA matrices of {layer} are incomplete or do not fit each other.")
        found[layer] = matrices["a"], matrices["b"]
    return found


def is_lora(name: str) -> bool:
    """Whether a value belongs to LoRA: a matrix, or what an optimiser keeps of one."""
    return "lora_" in name.lower()


def merged_lora(values: Mapping[str, Value], scaling: float) -> dict[str, Value]:
    """The values with B A, times `scaling`, in the weights, and without LoRA's own.

    Raises:
        CheckpointError: there are no matrices, or a weight that they belong to is missing.
    """
    matrices = find_lora(values)
    if not matrices:
        raise CheckpointError("The checkpoint holds no LoRA matrices.", hint="Show it: checkpoint show.")
    missing = [layer for layer in matrices if f"{layer}.weight" not in values]
    if missing:
        raise CheckpointError(
            f"The checkpoint lacks {missing[0]}.weight, which its LoRA matrices belong to.",
            hint="Save the frozen weights too, or take the matrices out with checkpoint extract-lora.",
        )
    result = {}
    for name, value in values.items():
        if is_lora(name):
            continue
        layer = name.removesuffix(".weight")
        if layer in matrices and name.endswith(".weight"):
            value = renamed(value, with_product(value.tensor, *matrices[layer], scaling))
        result[name] = value
    return result


def with_product(
    weight: LazyTensor, a: LazyTensor, b: LazyTensor, scaling: float, magnitude: LazyTensor | None = None
) -> LazyTensor:
    """A weight [out, in] plus scaling * B A, in its dtype; with DoRA's magnitude, rows of that length."""
    columns = a.read().float()

    def add(rows: Tensor, factors: Tensor, *lengths: Tensor) -> Tensor:
        changed = rows.float() + (factors.float() @ columns) * scaling
        if lengths:
            changed *= (lengths[0].float() / changed.norm(dim=1))[:, None]
        return changed.to(weight.dtype)

    sources = [weight, b] if magnitude is None else [weight, b, magnitude]
    # A file that was begun with another factor or another A is not gone on with.
    return mapped(sources, add, key=f"{scaling!r} {a.identity.hex()}")


def as_adapter(values: Mapping[str, Value], alpha: float) -> Adapter:
    """The matrices as an adapter with our names.

    Args:
        alpha: MindFormers' lora_alpha; the product is scaled by alpha / rank.

    Raises:
        CheckpointError: no matrices, or of layers that no kv_concat model has.
    """
    matrices = find_lora(values)
    if not matrices:
        raise CheckpointError("The checkpoint holds no LoRA matrices.", hint="Show it: checkpoint show.")
    modules = {our_layer(layer): LowRank(a.read(), b.read()) for layer, (a, b) in matrices.items()}
    ranks = {len(low_rank.a) for low_rank in modules.values()}
    if len(ranks) != 1:
        raise CheckpointError(f"The LoRA matrices have the ranks {sorted(ranks)}; MindFormers has one.")
    targets = tuple(sorted({name.rpartition(".")[2] for name in modules}))
    return Adapter(AdapterConfig(r=ranks.pop(), lora_alpha=alpha, target_modules=targets), modules)
