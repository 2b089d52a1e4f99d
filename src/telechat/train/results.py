"""What a finished run leaves: a model folder in the official layout, or an adapter in PEFT's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from telechat.checkpoint import Adapter, write_adapter
from telechat.checkpoint.save import folder_config, parameter_bytes, write_folder
from telechat.models import TeleChatConfig
from telechat.tokenizer import Tokenizer
from telechat.train.adapters import adapter_config, read_out
from telechat.train.config import LoraSection
from telechat.train.distributed.groups import is_first
from telechat.train.engine import TrainEngine

ADAPTER_FOLDER = "adapter"


def save_adapter(
    engine: TrainEngine, config: TeleChatConfig, section: LoraSection, base_model: str, folder: Path
) -> Adapter | None:
    """Write what was trained as PEFT folders: adapter/ with official names, adapter-llama/ with Llama's.

    A mixture has no Llama names. All ranks call this; the first writes, and gets the adapter.

    Raises:
        CheckpointError: a folder cannot be written.
    """
    if not is_first():
        _follow(engine.weights())
        return None
    adapter = read_out(engine.weights(), adapter_config(section, base_model))
    write_adapter(adapter, folder / ADAPTER_FOLDER, config)
    if not config.moe:
        write_adapter(adapter, folder / f"{ADAPTER_FOLDER}-llama", config, spelling="llama")
    return adapter


def save_weights(
    weights: Iterator[tuple[str, Tensor]], config: TeleChatConfig, folder: Path, *, dtype: torch.dtype
) -> None:
    """Write an engine's weights as an official model folder, one at a time.

    All ranks call this; the first, which is given whole tensors, writes.

    Raises:
        CheckpointError: the folder cannot be written.
    """

    if not is_first():
        _follow(weights)
        return

    def content(names: list[str]) -> dict[str, Tensor]:
        """The next tensors; files are asked for in the order of the table, as the weights come."""
        tensors = {}
        for expected in names:
            name, tensor = next(weights)
            assert name == expected, f"the engine gave {name} where {expected} is due"
            tensors[name] = tensor.to(dtype).contiguous()
        return tensors

    write_folder(folder, folder_config(config, dtype, None), parameter_bytes(config, dtype, None), content)


def _follow(weights: Iterator[tuple[str, Tensor]]) -> None:
    """Do this rank's share in making tensors whole that the first rank writes."""
    for _ in weights:
        pass


def write_generation_config(source: Path, target: Path, tokenizer: Tokenizer) -> None:
    """Keep the generation defaults of the model that was continued; a fresh one decodes greedily."""
    name = "generation_config.json"
    if (source / name).exists():
        shutil.copyfile(source / name, target / name)
        return
    special = tokenizer.special
    defaults = {
        "do_sample": False,
        "repetition_penalty": 1.0,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
        "user_token_id": special.user,
        "bot_token_id": special.bot,
    }
    (target / name).write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")
