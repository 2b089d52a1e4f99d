"""Makes transformers' Auto classes take our classes for TeleChat folders.

`AutoConfig` and `AutoModelForCausalLM` prefer a registered class to a folder's own code. `AutoTokenizer` does
not: with `trust_remote_code=True` it runs the code of a folder whose tokenizer config names some, registered
class or not. Its `from_pretrained` is therefore wrapped; everything that is not TeleChat passes through.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from telechat.hf.config import HUB_ARGUMENTS, TelechatConfig
from telechat.hf.model import TelechatForCausalLM
from telechat.hf.tokenizer import TelechatTokenizer

# Arguments of AutoTokenizer that choose a class or allow code: the class is chosen and code is never run.
_CHOOSING = ("trust_remote_code", "code_revision", "use_fast", "tokenizer_type", "config", "mistral_format")


def register() -> None:
    """Register with the Auto classes; doing it again changes nothing."""
    AutoConfig.register(TelechatConfig.model_type, TelechatConfig, exist_ok=True)
    AutoModelForCausalLM.register(TelechatConfig, TelechatForCausalLM, exist_ok=True)
    AutoTokenizer.register(TelechatConfig, TelechatTokenizer, exist_ok=True)
    original = AutoTokenizer.from_pretrained
    if getattr(original, "knows_telechat", False):
        return

    @functools.wraps(original)
    def from_pretrained(name: str | os.PathLike[str], *inputs: Any, **kwargs: Any) -> Any:
        if not _is_telechat(name, kwargs):
            return original(name, *inputs, **kwargs)
        rest = {key: value for key, value in kwargs.items() if key not in _CHOOSING}
        return TelechatTokenizer.from_pretrained(name, *inputs, **rest)

    from_pretrained.knows_telechat = True  # type: ignore[attr-defined]
    AutoTokenizer.from_pretrained = from_pretrained


def _is_telechat(name: str | os.PathLike[str], kwargs: dict[str, Any]) -> bool:
    """Whether the config in a folder or on the hub (or handed in) is TeleChat's."""
    config = kwargs.get("config")
    if config is not None:
        return isinstance(config, TelechatConfig)
    if os.path.isdir(name):
        return bool(_model_type(Path(name)) == TelechatConfig.model_type)
    hub_arguments = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
    try:
        raw, _ = PreTrainedConfig.get_config_dict(name, **hub_arguments)
    except (OSError, ValueError):  # no such repository, or no config: AutoTokenizer says so in its own words
        return False
    return bool(raw.get("model_type") == TelechatConfig.model_type)


def _model_type(folder: Path) -> Any:
    """`model_type` of a folder's config.json; None where there is none to read."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return raw.get("model_type") if isinstance(raw, dict) else None
