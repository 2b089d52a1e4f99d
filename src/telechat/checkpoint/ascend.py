"""Folders of the Ascend tool msModelSlim: int8 weights with static or dynamic activations.

A layer P with static activations (type `W8A8`) is `P.weight` int8 [N, K], `P.input_scale` and
`P.input_offset` [1], `P.quant_bias` int32 [N] and `P.deq_scale` [N]: fp32, or in fp16 models the bits of fp32
widened to int64. `W8A8S` is stored alike; most of its integers are small. With dynamic activations
(`W8A8_DYNAMIC`) it is `P.weight`, `P.weight_scale` and `P.weight_offset` [N, 1], and the bias stays.

In our `W8A8SC`, made of W8A8S and split by rank, `P.weight`, `P.index` and `P.info` are what `nibbles` makes
of the integers. A bf16 layer may be of our type `BF16C`: `P.weight` uint8 [N, K], `P.exponents`, `P.index`
and `P.info`, made by `exponents`.

A description file gives the type of every tensor. Knows nothing of calibration.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telechat.checkpoint.exponents import EncodedFloats, decode_floats, encode_floats
from telechat.checkpoint.folder import read_json
from telechat.checkpoint.nibbles import CODEC, Encoded, decode, encode
from telechat.checkpoint.packed import Expected, LoadedWeight
from telechat.errors import CheckpointError
from telechat.ops.int8 import ActivationRange, DynamicWeight, StaticWeight

STATIC, SPARSE, DYNAMIC, FLOAT = "W8A8", "W8A8S", "W8A8_DYNAMIC", "FLOAT"
COMPRESSED, COMPRESSED_FLOAT = "W8A8SC", "BF16C"
DESCRIPTION = "quant_model_description.json"
# Older versions of the tool.
_OLD_DESCRIPTIONS = tuple(f"quant_model_description_{kind}.json" for kind in ("w8a8", "w8a8s", "w8a8sc"))
_VERSION = "1.0.0"
_HEADER = (
    "version",
    "model_quant_type",
    "kv_cache_type",
    "kv_quant_type",
    "group_size",
    "reduce_quant_type",
    "fa_quant_type",
    "codec",
)
_READABLE = {STATIC, SPARSE, DYNAMIC, FLOAT, COMPRESSED, COMPRESSED_FLOAT}
_WEIGHT, _INDEX, _INFO, _EXPONENTS = ".weight", ".index", ".info", ".exponents"
_BYTES = ((None,), (torch.int8,))
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def weights_file(kind: str) -> str:
    """Name of the file with the weights of a type."""
    return f"quant_model_weight_{kind.lower()}.safetensors"


def find_description(folder: Path) -> Path | None:
    """The description of a folder; None where it is not of this tool."""
    for name in (DESCRIPTION, *_OLD_DESCRIPTIONS):
        if (folder / name).is_file():
            return folder / name
    return None


@dataclass(frozen=True)
class AscendFormat:
    """How a folder of the tool stores its weights; `types` gives the type of every tensor."""

    types: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> AscendFormat:
        """From the description.

        Raises:
            CheckpointError: a type that cannot be read.
        """
        content = read_json(path)
        types = {key: value for key, value in content.items() if key not in _HEADER}
        codec = content.get("codec")
        if COMPRESSED in types.values() and codec != CODEC:
            by = codec or "the Ascend tool"
            raise CheckpointError(
                f"{path.name} has weights of the type {COMPRESSED}, compressed by {by}; only {CODEC} can be "
                "read.",
                hint="The Ascend tool's layout is not public. Load the W8A8S folder, or compress that with: "
                "telechat quantize compress.",
            )
        other = sorted({str(value) for value in types.values()} - _READABLE)
        if other:
            raise CheckpointError(
                f"{path.name} has weights of the type {other[0]}.",
                hint=f"{STATIC}, {SPARSE} and {DYNAMIC} can be read.",
            )
        return cls(types)

    @property
    def summary(self) -> str:
        """The types of weights."""
        kinds = sorted(set(self.types.values()) - {FLOAT})
        return f"int8 weights and activations ({', '.join(kinds)})"

    def check_names(self, stored: Collection[str]) -> None:
        """Raise CheckpointError where description and weights do not speak of the same tensors."""
        differing = sorted(set(self.types) ^ set(stored))
        if differing:
            place = "the weights" if differing[0] in self.types else "the description"
            raise CheckpointError(
                f"{place} of the quantised model lack {differing[0]}.",
                hint="Check that both files are of the same model.",
            )

    def expected(self, name: str, shape: tuple[int, ...], stored: Collection[str]) -> Expected:
        """See `PackedFormat`."""
        rows = shape[0]
        base = name.removesuffix(_WEIGHT)
        if base + ".deq_scale" in stored:
            integers: Expected = {name: (shape, (torch.int8,))}
            if base + _INFO in stored:
                integers = {name: _BYTES, base + _INDEX: _BYTES, base + _INFO: ((5,), (torch.int64,))}
            return {
                **integers,
                base + ".input_scale": ((1,), _FLOATS),
                base + ".input_offset": ((1,), (*_FLOATS, torch.int8)),
                base + ".quant_bias": ((rows,), (torch.int32,)),
                base + ".deq_scale": ((rows,), (torch.int64, torch.float32)),
            }
        if base + ".weight_scale" in stored:
            return {
                name: (shape, (torch.int8,)),
                base + ".weight_scale": ((rows, 1), _FLOATS),
                base + ".weight_offset": ((rows, 1), _FLOATS),
            }
        if base + _EXPONENTS in stored:
            exponents: Expected = dict.fromkeys((base + _EXPONENTS, base + _INDEX), _BYTES)
            return {name: (shape, (torch.uint8,)), **exponents, base + _INFO: ((6,), (torch.int64,))}
        return {}

    def holds_bias(self, name: str, stored: Collection[str]) -> bool:
        """With static activations."""
        return name.removesuffix(_WEIGHT) + ".deq_scale" in stored

    def assemble(self, name: str, tensors: Mapping[str, Tensor]) -> LoadedWeight:
        """See `PackedFormat`."""
        base = name.removesuffix(_WEIGHT)
        if base + ".weight_scale" in tensors:
            if bool(tensors[base + ".weight_offset"].any()):
                raise CheckpointError(
                    f"{base}.weight_offset is not zero; only symmetric weights can be read."
                )
            return DynamicWeight(tensors[name], tensors[base + ".weight_scale"].float().view(-1))
        if base + _EXPONENTS in tensors:
            parts = (tensors[base + leaf] for leaf in (_EXPONENTS, _INDEX, _INFO))
            return decode_floats(EncodedFloats(tensors[name], Encoded(*parts)), name)
        scale = float(tensors[base + ".input_scale"])
        offset = float(tensors[base + ".input_offset"])
        if not scale > 0 or offset != int(offset) or not -128 <= offset <= 127:
            raise CheckpointError(
                f"{base}: an input scale of {scale:g} and an offset of {offset:g} cannot be."
            )
        integers = tensors[name]
        if base + _INFO in tensors:
            integers = decode(Encoded(integers, tensors[base + _INDEX], tensors[base + _INFO]), name)
        return StaticWeight(
            integers,
            read_deq_scale(tensors[base + ".deq_scale"]),
            tensors[base + ".quant_bias"],
            ActivationRange(scale, int(offset)),
        )


def read_deq_scale(stored: Tensor) -> Tensor:
    """fp32 [N] from either form."""
    if stored.dtype == torch.float32:
        return stored
    assert stored.dtype == torch.int64, stored.dtype
    low = stored & 0xFFFFFFFF
    return torch.where(low >= 2**31, low - 2**32, low).to(torch.int32).view(torch.float32)


def stored_static(name: str, weight: StaticWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """The five tensors of the weight called `name` in a model of this dtype."""
    base = name.removesuffix(_WEIGHT)
    deq_scale = weight.deq_scale
    if dtype == torch.float16:
        deq_scale = deq_scale.view(torch.int32).to(torch.int64)
    return {
        name: weight.weight,
        base + ".input_scale": torch.tensor([weight.inputs.scale], dtype=dtype),
        base + ".input_offset": torch.tensor([weight.inputs.offset], dtype=dtype),
        base + ".quant_bias": weight.quant_bias,
        base + ".deq_scale": deq_scale.contiguous(),
    }


def compressed_static(name: str, stored: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A weight's five tensors, the integers compressed where that makes them smaller; and their types."""
    base = name.removesuffix(_WEIGHT)
    types = dict.fromkeys(stored, SPARSE)
    encoded = encode(stored[name])
    if encoded.num_bytes >= stored[name].nbytes:
        return dict(stored), types
    integers = {name: encoded.content, base + _INDEX: encoded.index, base + _INFO: encoded.info}
    offset = {base + ".input_offset": stored[base + ".input_offset"].to(torch.int8)}
    return {**stored, **integers, **offset}, {**types, **dict.fromkeys(integers, COMPRESSED)}


def compressed_floats(name: str, weight: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a float weight, compressed where it is bf16 and that makes it smaller; their types."""
    base = name.removesuffix(_WEIGHT)
    encoded = encode_floats(weight) if weight.dtype == torch.bfloat16 else None
    if encoded is None or encoded.num_bytes >= weight.nbytes:
        return {name: weight}, {name: FLOAT}
    tensors = {
        name: encoded.rest,
        base + _EXPONENTS: encoded.exponents.content,
        base + _INDEX: encoded.exponents.index,
        base + _INFO: encoded.exponents.info,
    }
    return tensors, dict.fromkeys(tensors, COMPRESSED_FLOAT)


def stored_dynamic(name: str, weight: DynamicWeight) -> dict[str, Tensor]:
    """The three tensors of the weight called `name`."""
    base = name.removesuffix(_WEIGHT)
    scales = weight.scales.view(-1, 1).contiguous()
    return {
        name: weight.weight,
        base + ".weight_scale": scales,
        base + ".weight_offset": torch.zeros_like(scales),
    }


def write_description(folder: Path, kind: str, types: Mapping[str, str]) -> None:
    """The description file, a type for every tensor."""
    content: dict[str, Any] = {"version": _VERSION, "model_quant_type": kind}
    if kind == COMPRESSED:
        content["codec"] = CODEC
    content |= dict(sorted(types.items()))
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
