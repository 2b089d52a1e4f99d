"""What a MindFormers `predict_*.yaml` says about answering: where the weights are, how tokens are drawn.

Maps what we have and lists what is not used. Sizes are read by `run_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telechat.checkpoint.mindspore.run_config import MODEL, read_keys
from telechat.config import read_yaml
from telechat.errors import ConfigError
from telechat.run_file import RunFile, is_run_file

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


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """A run file, as far as answering goes.

    Attributes:
        checkpoint: of `load_checkpoint`; None where it is empty.
        tokenizer: of `processor.tokenizer.vocab_file`; None where there is none.
        generation: settings as generation_config.json has them.
        max_model_len: `seq_length`.
        block_size, num_blocks: of the cache; None where unset.
        ignored: keys that have no meaning here.
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
        ConfigError: no such file, not MindFormers', or a value of the wrong kind.
    """
    raw = read_yaml(path)
    if not is_run_file(raw):
        raise ConfigError(
            f"{path.name} has no model.model_config; it is no MindFormers run file.",
            hint="For this verb, --config takes predict_*.yaml.",
        )
    file = RunFile(raw, path.name)
    checkpoint, vocabulary = file.text("load_checkpoint"), file.text("processor.tokenizer.vocab_file")
    drawing = {ours: file.get(f"{MODEL}.{name}") for ours, name in _GENERATION.items()}
    sizes = {name: _count(file, f"{MODEL}.{name}") for name in ("seq_length", "block_size", "num_blocks")}
    return PredictConfig(
        checkpoint=Path(checkpoint) if checkpoint else None,
        tokenizer=Path(vocabulary) if vocabulary else None,
        generation={name: value for name, value in drawing.items() if value is not None},
        max_model_len=sizes["seq_length"],
        block_size=sizes["block_size"],
        num_blocks=sizes["num_blocks"],
        ignored=file.ignored(read_elsewhere=read_keys()),
    )


def _count(file: RunFile, key: str) -> int | None:
    if file.get(key) is None:
        return None
    value = file.number(key, 0)
    if value < 1:
        raise file.wrong(key, value, "a positive integer")
    return value
