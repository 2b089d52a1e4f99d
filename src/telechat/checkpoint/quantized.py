"""Quantised weights on disk: compressed-tensors' `pack-quantized`.

A layer P has `P.weight_packed` int32 [out, in * bits / 32], `P.weight_scale` [out, in / group] and
`P.weight_shape`; integers are stored with half their range added, earlier inputs in lower bits. At 4 bits
these are the very bytes that `QuantizedWeight` holds; at 8 bits the sign bit is turned. Knows nothing of how
the integers were found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from telechat.checkpoint.packed import SECTION, Expected, LoadedWeight
from telechat.errors import CheckpointError, ConfigError
from telechat.models import TeleChatConfig, parameter_table
from telechat.ops.quantized import SCALE_DTYPE, QuantizedWeight, WeightScheme

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
PACKED, SCALE, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
_WEIGHT = ".weight"
_SIGN_BIT = -128
# What a group of layers must say for us to read it; anything else computes something else.
_REQUIRED = {"type": "int", "symmetric": True, "strategy": "group", "dynamic": False}


@dataclass(frozen=True)
class CompressedTensors:
    """A folder in this format, all its quantised layers alike. See `PackedFormat`."""

    scheme: WeightScheme

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> CompressedTensors:
        """From config.json's `quantization_config`.

        Raises:
            CheckpointError: in a way that cannot be read.
        """
        if section.get("format") != FORMAT:
            raise CheckpointError(
                f"This checkpoint is quantised (method {METHOD}, format {section.get('format')}); load_model "
                f"reads {METHOD} in the format {FORMAT}.",
                hint="Use the unquantised release, and quantise it with: telechat quantize run.",
            )
        groups = section.get("config_groups")
        if not isinstance(groups, Mapping) or len(groups) != 1:
            raise _unreadable("config_groups must hold one group of layers")
        [group] = groups.values()
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping) or group.get("input_activations"):
            raise _unreadable("only weights may be quantised, not activations")
        for key, value in _REQUIRED.items():
            if weights.get(key, value) != value:
                raise _unreadable(f"weights.{key} is {weights[key]!r}; it must be {value!r}")
        try:
            return cls(WeightScheme(weights.get("num_bits", 0), weights.get("group_size", 0)))
        except ConfigError as error:
            raise _unreadable(error.message.rstrip(".")) from error

    @property
    def summary(self) -> str:
        """Bits and groups."""
        return f"{self.scheme.name} in groups of {self.scheme.group_size}"

    def expected(self, name: str, shape: tuple[int, ...], stored: Collection[str]) -> Expected:
        """See `PackedFormat`."""
        expected = expected_tensors(name, shape, self.scheme)
        return expected if set(expected) & set(stored) else {}

    def holds_bias(self, name: str, stored: Collection[str]) -> bool:
        """Never."""
        return False

    def assemble(self, name: str, tensors: Mapping[str, Tensor]) -> LoadedWeight:
        """See `PackedFormat`."""
        base = name.removesuffix(_WEIGHT)
        qweight = tensors[base + PACKED].view(torch.uint8)
        if self.scheme.bits == 8:
            qweight = qweight.view(torch.int8).bitwise_xor_(_SIGN_BIT)
        return QuantizedWeight(self.scheme, qweight, tensors[base + SCALE].to(SCALE_DTYPE))


def _unreadable(problem: str) -> CheckpointError:
    return CheckpointError(f"config.json, {SECTION}: {problem}.", hint="Use the unquantised release.")


def config_section(config: TeleChatConfig, scheme: WeightScheme) -> dict[str, Any]:
    """What config.json says under `quantization_config`."""
    weights = {"num_bits": scheme.bits, "group_size": scheme.group_size, **_REQUIRED}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    routers = [parameter.name for parameter in parameter_table(config) if parameter.kind == "router"]
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [name.removesuffix(_WEIGHT) for name in routers],
        "kv_cache_scheme": None,
    }


def stored_tensors(name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    """The tensors on disk of the weight called `name`, on the CPU."""
    qweight = weight.qweight.cpu()
    if weight.scheme.bits == 8:
        qweight = qweight ^ _SIGN_BIT
    base = name.removesuffix(_WEIGHT)
    return {
        base + PACKED: qweight.contiguous().view(torch.int32),
        base + SCALE: weight.scales.cpu().contiguous(),
        base + SHAPE: torch.tensor([weight.rows, weight.columns]),
    }


def stored_bytes(shape: tuple[int, ...], scheme: WeightScheme) -> int:
    """Bytes on disk of a weight [out, in]."""
    rows, columns = shape
    return rows * columns * scheme.bits // 8 + rows * columns // scheme.group_size * SCALE_DTYPE.itemsize + 16


def expected_tensors(name: str, shape: tuple[int, ...], scheme: WeightScheme) -> Expected:
    """Name on disk -> (shape, dtypes that will do) of the weight called `name`."""
    rows, columns = shape
    base = name.removesuffix(_WEIGHT)
    scale_dtypes = (torch.float16, torch.bfloat16, torch.float32)
    return {
        base + PACKED: ((rows, columns * scheme.bits // 32), (torch.int32,)),
        base + SCALE: ((rows, columns // scheme.group_size), scale_dtypes),
        base + SHAPE: ((2,), (torch.int64,)),
    }
