"""Quantised folders as transformers models: the weights stay in integers and are read by our own loader.

transformers would hand such folders to the packages of the tools that made them. Knows no format.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from telechat.checkpoint import load_model
from telechat.checkpoint.folder import CONFIG, GENERATION_CONFIG, read_json
from telechat.checkpoint.packing_choice import read_packing
from telechat.checkpoint.parts import is_split
from telechat.errors import ConfigError
from telechat.hf.config import HUB_ARGUMENTS
from telechat.hf.decoder import attention_name

if TYPE_CHECKING:
    from telechat.hf.config import TelechatConfig
    from telechat.hf.model import TelechatForCausalLM

# What `from_pretrained` may be told of a quantised folder, besides the config; the last ones change nothing.
_OBEYED = ("dtype", "torch_dtype", "device_map", "attn_implementation")
_WITHOUT_EFFECT = (
    *HUB_ARGUMENTS,
    "low_cpu_mem_usage",
    "use_safetensors",
    "_from_auto",
    "adapter_kwargs",
)


def is_packed_folder(name: str) -> bool:
    """Whether this is a local folder of quantised weights."""
    folder = Path(name)
    if not (folder / CONFIG).is_file():
        return False
    return is_split(folder) or read_packing(folder, read_json(folder / CONFIG)) is not None


def load_packed(
    cls: type[TelechatForCausalLM], name: str, config: TelechatConfig, options: dict[str, Any]
) -> TelechatForCausalLM:
    """The model of a quantised folder, in eval mode.

    Args:
        options: of `from_pretrained`.

    Raises:
        ConfigError: an option that cannot be obeyed here.
    """
    unknown = [key for key in options if key not in (*_OBEYED, *_WITHOUT_EFFECT)]
    if unknown:
        raise ConfigError(
            f"{name} is quantised; {unknown[0]} has no effect on such folders.",
            hint=f"What can be said here: {', '.join(_OBEYED)}.",
        )
    dtype = options.get("dtype") or options.get("torch_dtype") or "auto"
    asked = options.get("attn_implementation") or config._attn_implementation
    loaded = load_model(
        name, device=_device(options.get("device_map")), dtype=dtype, attention=attention_name(asked)
    )
    with torch.device("meta"):
        model: TelechatForCausalLM = cls(config)
    model.adopt(loaded)
    if os.path.exists(os.path.join(name, GENERATION_CONFIG)):
        model.generation_config = GenerationConfig.from_pretrained(name)
    model.config.name_or_path = name
    model.eval()
    return model


def _device(device_map: Any) -> str:
    """The one device that a `device_map` names."""
    if device_map is None:
        return "cpu"
    if isinstance(device_map, dict):
        places = {str(place) for place in device_map.values()}
        if len(places) != 1:
            raise ConfigError("A quantised folder goes onto one device.", hint="Name one in device_map.")
        [device_map] = places
    return str(device_map)
