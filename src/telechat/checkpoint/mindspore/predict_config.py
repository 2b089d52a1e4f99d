"""What a MindFormers `predict_*.yaml` says about answering: where the weights are, how tokens are drawn.

Maps what we have and lists what is not used. Sizes are read by `run_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telechat.config import read_yaml
from telechat.errors import ConfigError
from telechat.run_file import is_run_file

# Field of generation_config.json -> name in `model.model_config`.
_GENERATION = {
    "max_length": "max_decode_length",
    "max_new_tokens": "max_new_tokens",
    "do_sample": "do_sample",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repetition_penalty",
    "eos_token_id": "eos_token_id",
    "bos_token_id": "bos_token_id",
}
_USED_AT_TOP = ("load_checkpoint", "model", "moe_config", "processor")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """A run file, as far as answering goes.

    Attributes:
        checkpoint: of `load_checkpoint`; None where it is empty.
        tokenizer: of `processor.tokenizer.vocab_file`; None where there is none.
        generation: settings as generation_config.json has them.
        max_model_len: `seq_length`.
        block_size, num_blocks: of the cache; None where unset.
        ignored: sections that have no meaning here.
    """

    checkpoint: Path | None
    tokenizer: Path | None
    generation: Mapping[str, Any]
    max_model_len: int | None
    block_size: int | None
    num_blocks: int | None
    ignored: tuple[str, ...]


def read_predict_config(path: Path) -> PredictConfig:
    """Read a run file. Relative paths in it count from the working directory, as for MindFormers.

    Raises:
        ConfigError: no such file, or not MindFormers'.
    """
    raw = read_yaml(path)
    if not is_run_file(raw):
        raise ConfigError(
            f"{path.name} has no model.model_config; it is no MindFormers run file.",
            hint="For this verb, --config takes predict_*.yaml.",
        )
    model = raw["model"]["model_config"]
    processor = raw.get("processor") or {}
    vocabulary = (processor.get("tokenizer") or {}).get("vocab_file")
    sampling = {ours: model[name] for ours, name in _GENERATION.items() if model.get(name) is not None}
    return PredictConfig(
        checkpoint=Path(raw["load_checkpoint"]) if raw.get("load_checkpoint") else None,
        tokenizer=Path(vocabulary) if vocabulary else None,
        generation=sampling,
        max_model_len=_count(path, model, "seq_length"),
        block_size=_count(path, model, "block_size"),
        num_blocks=_count(path, model, "num_blocks"),
        ignored=tuple(key for key in raw if key not in _USED_AT_TOP),
    )


def _count(path: Path, model: Mapping[str, Any], name: str) -> int | None:
    value = model.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{path.name}: {name} is {value!r}; it must be a positive integer.")
    return value
