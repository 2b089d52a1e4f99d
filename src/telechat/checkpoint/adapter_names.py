"""Names of adapter tensors in PEFT's files, in two spellings.

`official` names are those of the parameter table; peft uses them on `telechat.hf`. `llama` names are those of
the same model exported as a Llama, for vLLM: there `key_value` is two layers, `k_proj` and `v_proj`. Knows
names only, no tensors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from telechat.checkpoint.names import canonical_name
from telechat.errors import CheckpointError

Spelling = Literal["official", "llama"]
Part = Literal["all", "key", "value"]
Role = Literal["lora_A", "lora_B", "lora_magnitude_vector"]

KEY_VALUE = "self_attention.key_value"
_PREFIX = "base_model.model."
_LLAMA_LEAVES: dict[str, tuple[tuple[str, Part], ...]] = {
    "self_attention.query": (("self_attn.q_proj", "all"),),
    KEY_VALUE: (("self_attn.k_proj", "key"), ("self_attn.v_proj", "value")),
    "self_attention.dense": (("self_attn.o_proj", "all"),),
    "mlp.gate_proj": (("mlp.gate_proj", "all"),),
    "mlp.up_proj": (("mlp.up_proj", "all"),),
    "mlp.down_proj": (("mlp.down_proj", "all"),),
}
_OFFICIAL_LEAVES = {
    llama: (official, part) for official, parts in _LLAMA_LEAVES.items() for llama, part in parts
}
_TENSOR = re.compile(r"(?P<module>.+)\.(?P<role>lora_A|lora_B|lora_magnitude_vector)(\.weight)?")
_LLAMA_MODULE = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<leaf>.+)")
_OFFICIAL_MODULE = re.compile(r"transformer\.h\.(?P<layer>\d+)\.(?P<leaf>.+)")


@dataclass(frozen=True)
class TensorName:
    """What a tensor of an adapter file is.

    Attributes:
        module: linear layer by the parameter table, `transformer.h.0.self_attention.query`.
        part: rows of the layer that it is about: `key` and `value` are halves of `key_value`.
        role: one of PEFT's three tensors of a layer.
        stored_module: the layer's name in the file, which the patterns of the configuration speak of.
    """

    module: str
    part: Part
    role: Role
    stored_module: str


def parse_tensor_name(stored: str) -> TensorName:
    """Read a name of `adapter_model.safetensors`, in either spelling.

    Raises:
        CheckpointError: not the name of an adapter's tensor, or of a layer that no TeleChat model has.
    """
    match = _TENSOR.fullmatch(stored)
    if match is None or not stored.startswith(_PREFIX):
        raise CheckpointError(
            f"The adapter holds {stored}, which is no tensor of a low-rank adapter.",
            hint="Names are such as base_model.model.transformer.h.0.self_attention.query.lora_A.weight.",
        )
    module = match["module"].removeprefix(_PREFIX)
    official, part = official_module(module)
    role: Role = match["role"]  # type: ignore[assignment]  # the expression allows nothing else
    return TensorName(official, part, role, module)


def official_module(stored: str) -> tuple[str, Part]:
    """(layer by the parameter table, part of it) of a layer's name in either spelling.

    Raises:
        CheckpointError: a Llama name of no layer that TeleChat has.
    """
    match = _LLAMA_MODULE.fullmatch(stored)
    if match is None:
        return ("lm_head" if stored == "lm_head" else canonical_name(stored)), "all"
    if match["leaf"] not in _OFFICIAL_LEAVES:
        raise CheckpointError(
            f"The adapter changes {stored}; this model has no such layer.",
            hint=f"Layers with Llama names are {', '.join(_OFFICIAL_LEAVES)}.",
        )
    leaf, part = _OFFICIAL_LEAVES[match["leaf"]]
    return f"transformer.h.{match['layer']}.{leaf}", part


def llama_modules(module: str) -> tuple[tuple[str, Part], ...]:
    """(Llama name, part of the layer) for each Llama layer that a layer of the table becomes.

    Raises:
        CheckpointError: the layer has no Llama name, as those of a mixture's experts.
    """
    if module == "lm_head":
        return ((module, "all"),)
    match = _OFFICIAL_MODULE.fullmatch(module)
    if match is None or match["leaf"] not in _LLAMA_LEAVES:
        raise CheckpointError(
            f"{module} has no Llama name: only dense models are Llama-shaped.",
            hint="Write the adapter with official names.",
        )
    return tuple(
        (f"model.layers.{match['layer']}.{leaf}", part) for leaf, part in _LLAMA_LEAVES[match["leaf"]]
    )


def tensor_name(stored_module: str, role: Role) -> str:
    """The name in the file of a layer's tensor."""
    weight = "" if role == "lora_magnitude_vector" else ".weight"
    return f"{_PREFIX}{stored_module}.{role}{weight}"
