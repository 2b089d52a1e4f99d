"""Model folders of random weights in the formats of other tools, as a user would get them from a hub.

Integers are drawn evenly, settings are those of the published folders. Which layers are quantised is each
format's custom: GPTQ and AWQ all of a block, W8A8 all but `mlp.down_proj`; embedding and head stay bf16.
Knows nothing of engines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from telechat.checkpoint import ascend, gptq
from telechat.checkpoint.folder import GPTQ_SETTINGS
from telechat.checkpoint.packed import SECTION
from telechat.checkpoint.save import folder_config
from telechat.models import TeleChatModel, parameter_table
from telechat.ops.int8 import ActivationRange, StaticWeight

GROUP = 128
_DEVIATION = 0.02

# The tensors on disk of a weight, and their type where the format has a description.
Packed = dict[str, Tensor]


def _words(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """int32, every bit random."""
    return torch.randint(-(2**31), 2**31, (rows, columns), generator=generator, dtype=torch.int32)


def _scales(groups: int, outputs: int, bits: int) -> Tensor:
    """With integers spread evenly over their range weights deviate by as much as plain ones."""
    return torch.full((groups, outputs), _DEVIATION * 12**0.5 / 2**bits, dtype=torch.float16)


def _gptq(bits: int) -> Callable[[str, tuple[int, ...], torch.Generator], Packed]:
    def pack(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Packed:
        rows, columns = shape
        middle = torch.full((columns // GROUP, rows), 2 ** (bits - 1), dtype=torch.uint8)
        base = name.removesuffix("weight")
        return {
            base + gptq.QWEIGHT: _words(generator, columns * bits // 32, rows),
            base + gptq.QZEROS: gptq.pack_zeros(middle, bits),
            base + gptq.SCALES: _scales(columns // GROUP, rows, bits),
            base + gptq.GROUP_INDEX: (torch.arange(columns) // GROUP).to(torch.int32),
        }

    return pack


def _awq(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Packed:
    rows, columns = shape
    base = name.removesuffix("weight")
    return {
        base + gptq.QWEIGHT: _words(generator, columns, rows // 8),
        base + gptq.QZEROS: _words(generator, columns // GROUP, rows // 8),
        base + gptq.SCALES: _scales(columns // GROUP, rows, 4),
    }


def _w8a8(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Packed:
    if name.endswith("mlp.down_proj.weight"):
        return {}
    rows, columns = shape
    integers = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    inputs = ActivationRange.spanning(-4.0, 4.0, torch.bfloat16)
    deq_scale = torch.full((rows,), _DEVIATION * 12**0.5 / 256 * inputs.scale)
    weight = StaticWeight(integers, deq_scale, torch.zeros(rows, dtype=torch.int32), inputs)
    return ascend.stored_static(name, weight, torch.bfloat16)


FORMATS: dict[str, Callable[[str, tuple[int, ...], torch.Generator], Packed]] = {
    "gptq-int4": _gptq(4),
    "gptq-int8": _gptq(8),
    "awq": _awq,
    "w8a8": _w8a8,
}


def write_folder(folder: Path, model: TeleChatModel, format_name: str) -> None:
    """Weights and settings of a plain bf16 model with its linear layers replaced by random integers.

    All of it is in memory once more.
    """
    pack, generator = FORMATS[format_name], torch.Generator().manual_seed(0)
    plain = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    types: dict[str, str] = {}
    for parameter in parameter_table(model.config):
        packed: Packed = {}
        if parameter.kind == "linear":
            packed = pack(parameter.name, parameter.shape, generator)
        elif parameter.kind == "bias" and format_name == "w8a8" and "down_proj" not in parameter.name:
            continue  # within the integers
        kept = packed or {parameter.name: plain[parameter.name].detach()}
        types.update(dict.fromkeys(kept, ascend.STATIC if packed else ascend.FLOAT))
        tensors.update(kept)
    folder.mkdir(parents=True)
    config = folder_config(model.config, torch.bfloat16, None)
    file = "model.safetensors"
    if format_name == "w8a8":
        file = ascend.weights_file(ascend.STATIC)
        ascend.write_description(folder, ascend.STATIC, types)
        config["quantize"] = "w8a8"
    elif format_name == "awq":
        config[SECTION] = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    else:
        settings = {"bits": int(format_name[-1]), "group_size": GROUP, "desc_act": False, "sym": True}
        _write_json(folder / GPTQ_SETTINGS, settings)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    _write_json(folder / "config.json", config)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
