"""The folder that GPTQ makes: official names, settings where every reader looks for them.

Knows nothing of how codes were found.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from telechat.checkpoint.folder import GPTQ_SETTINGS, write_json
from telechat.checkpoint.gptq import GROUP_INDEX, QWEIGHT, QZEROS, SCALES
from telechat.checkpoint.packed import SECTION
from telechat.checkpoint.save import folder_config, write_folder
from telechat.models.parameters import Parameter, parameter_table
from telechat.quant.blockwise import LayerBits
from telechat.quant.config import QuantizeConfig
from telechat.quant.source import Source
from telechat.quant.unfinished import Unfinished

REPORT = "quantize_report.json"


def settings_json(config: QuantizeConfig, layers: LayerBits) -> dict[str, Any]:
    """Contents of quantize_config.json, and of `quantization_config` in config.json."""
    settings: dict[str, Any] = {
        "bits": config.bits,
        "group_size": config.groups,
        "damp_percent": config.damp_percent,
        "desc_act": config.desc_act,
        "static_groups": config.static_groups,
        "sym": config.sym,
        "true_sequential": config.true_sequential,
        "model_name_or_path": None,
        "model_file_base_name": None,
        "quant_method": "gptq",
        "checkpoint_format": config.checkpoint_format,
        "lm_head": False,
    }
    others = {name: bits for name, bits in layers.bits.items() if bits != config.bits}
    if others:
        # GPTQModel's way: an expression for each layer that differs.
        settings["dynamic"] = {
            f"+:^{re.escape(name.removesuffix('.weight'))}$": {"bits": bits} for name, bits in others.items()
        }
    return settings


def write_gptq_folder(
    out: Path,
    source: Source,
    config: QuantizeConfig,
    layers: LayerBits,
    unfinished: Unfinished,
    *,
    max_shard_bytes: int,
) -> None:
    """Weights, config.json, quantize_config.json and the errors of all layers."""
    settings = settings_json(config, layers)
    table = parameter_table(source.config)
    sizes = {parameter.name: _stored_bytes(parameter, source, layers) for parameter in table}
    kept: dict[int, dict[str, Tensor]] = {}  # the block that was read last

    def content(names: list[str]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name in names:
            if name not in layers.bits:
                tensors[name] = source.read(name).to(source.dtype, copy=True).contiguous()
                continue
            index = int(name.split(".")[2])
            if index not in kept:
                kept.clear()
                kept[index] = unfinished.load(index)
            base = name.removesuffix("weight")
            for part in (QWEIGHT, QZEROS, SCALES, GROUP_INDEX):
                tensors[base + part] = kept[index][base + part]
        return tensors

    fields = {**folder_config(source.config, source.dtype, None), SECTION: settings}
    write_folder(out, fields, sizes, content, max_shard_bytes=max_shard_bytes)
    write_json(out / GPTQ_SETTINGS, settings)
    notes = [note for index in range(source.config.num_layers) for note in unfinished.notes(index)]
    write_json(out / REPORT, {"method": config.method, "layers": notes})


def _stored_bytes(parameter: Parameter, source: Source, layers: LayerBits) -> int:
    bits = layers.bits.get(parameter.name)
    if bits is None:
        return parameter.size * source.dtype.itemsize
    rows, columns = parameter.shape
    groups = columns // layers.of(parameter.name).group_of(columns)
    return rows * columns * bits // 8 + groups * rows * (2 + bits // 8 + 1) + 4 * columns
