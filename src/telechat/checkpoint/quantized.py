"""Quantised weights on disk: compressed-tensors' `pack-quantized`.

A layer P has `P.weight_packed` int32 [out, in * bits / 32], `P.weight_scale` [out, in / group] and
`P.weight_shape`; integers are stored with half their range added, earlier inputs in lower bits. At 4 bits
these are the very bytes that `QuantizedWeight` holds; at 8 bits the sign bit is turned. Knows nothing of how
the integers were found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from telechat.errors import CheckpointError, ConfigError
from telechat.models import TeleChatConfig, parameter_table
from telechat.ops.quantized import SCALE_DTYPE, QuantizedWeight, WeightScheme

SECTION = "quantization_config"
METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
PACKED, SCALE, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
_WEIGHT = ".weight"
_SIGN_BIT = -128
# What a group of layers must say for us to read it; anything else computes something else.
_REQUIRED = {"type": "int", "symmetric": True, "strategy": "group", "dynamic": False}


def read_scheme(raw: Mapping[str, Any]) -> WeightScheme | None:
    """How the folder with this config.json is quantised; None when it is not.

    Raises:
        CheckpointError: in a way that cannot be read.
    """
    section = raw.get(SECTION)
    if not section:
        return None
    method = section.get("quant_method", "unknown") if isinstance(section, Mapping) else "unknown"
    if method != METHOD or section.get("format") != FORMAT:
        stored_as = f", format {section['format']}" if method == METHOD and "format" in section else ""
        raise CheckpointError(
            f"This checkpoint is quantised (method {method}{stored_as}); load_model reads fp32, fp16 and "
            f"bf16 weights, and {METHOD} in the format {FORMAT}.",
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
        return WeightScheme(weights.get("num_bits", 0), weights.get("group_size", 0))
    except ConfigError as error:
        raise _unreadable(error.message.rstrip(".")) from error


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


def expected_tensors(
    name: str, shape: tuple[int, ...], scheme: WeightScheme
) -> dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]:
    """Name on disk -> (shape, dtypes that will do) of the weight called `name`."""
    rows, columns = shape
    base = name.removesuffix(_WEIGHT)
    scale_dtypes = (torch.float16, torch.bfloat16, torch.float32)
    return {
        base + PACKED: ((rows, columns * scheme.bits // 32), (torch.int32,)),
        base + SCALE: ((rows, columns // scheme.group_size), scale_dtypes),
        base + SHAPE: ((2,), (torch.int64,)),
    }


def split_name(name: str) -> tuple[str, str] | None:
    """(name of the weight, which of its tensors) of a stored tensor; None when it is no part of one."""
    for suffix in (PACKED, SCALE, SHAPE):
        if name.endswith(suffix):
            return name.removesuffix(suffix) + _WEIGHT, suffix
    return None


class PackedWeights:
    """Collects the tensors of quantised weights, which come one by one, until a weight is complete."""

    def __init__(self, scheme: WeightScheme) -> None:
        self.scheme = scheme
        self._waiting: dict[str, dict[str, Tensor]] = {}

    def add(self, name: str, suffix: str, tensor: Tensor) -> QuantizedWeight | None:
        """Take a tensor, whose memory may be used; the weight, once integers and scales are there."""
        if suffix == SHAPE:  # the shapes of the others have been checked
            return None
        parts = self._waiting.setdefault(name, {})
        parts[suffix] = tensor
        if len(parts) < 2:
            return None
        del self._waiting[name]
        qweight = parts[PACKED].view(torch.uint8)
        if self.scheme.bits == 8:
            qweight = qweight.view(torch.int8).bitwise_xor_(_SIGN_BIT)
        return QuantizedWeight(self.scheme, qweight, parts[SCALE].to(SCALE_DTYPE))
