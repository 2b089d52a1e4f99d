"""Which way of storing quantised weights a folder uses, from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telechat.checkpoint import awq, gptq_folder, quantized
from telechat.checkpoint.ascend import AscendFormat, find_description
from telechat.checkpoint.folder import GPTQ_SETTINGS, read_json
from telechat.checkpoint.packed import SECTION, PackedFormat
from telechat.errors import CheckpointError

# In the order of looking; without either, config.json holds the settings in `quantization_config`.
_SETTINGS_FILES = (GPTQ_SETTINGS, "quant_config.json")


def settings_file(folder: Path) -> Path | None:
    """The file beside config.json that says how a folder is quantised; None where there is none."""
    named = (folder / name for name in _SETTINGS_FILES if (folder / name).is_file())
    return find_description(folder) or next(named, None)


def read_packing(folder: Path, raw: Mapping[str, Any]) -> PackedFormat | None:
    """How a folder's weights are quantised; None when they are not.

    Args:
        raw: its config.json.

    Raises:
        CheckpointError: in a way that cannot be read.
        ConfigError: settings that cannot be.
    """
    settings = settings_file(folder)
    if settings is not None and settings == find_description(folder):
        return AscendFormat.read(settings)
    file, section = "config.json", raw.get(SECTION)
    if settings is not None:
        file, section = settings.name, read_json(settings)
    if not section:
        return None
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{file}: the settings of the quantisation are no object.")
    method = section.get("quant_method")
    if method is None and str(section.get("version", "")).lower() == "gemm":
        method = awq.METHOD
    if method is None and file != "config.json":
        method = gptq_folder.METHOD
    if method == quantized.METHOD:
        return quantized.CompressedTensors.read(section)
    if method == gptq_folder.METHOD:
        return gptq_folder.GptqFormat.read(section, file)
    if method == awq.METHOD:
        return awq.AwqFormat.read(section, file)
    raise CheckpointError(
        f"This checkpoint is quantised (method {method or 'unknown'}); load_model reads plain weights, "
        f"{quantized.METHOD} in the format {quantized.FORMAT}, {gptq_folder.METHOD} and {awq.METHOD}.",
        hint="Use the unquantised release, and quantise it with: telechat quantize run.",
    )
