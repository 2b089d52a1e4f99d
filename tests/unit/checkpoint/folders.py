"""Model folders for tests: small models with random weights, written in every layout found on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from telechat.layers.moe import MoeConfig
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, TeleChatModel, build_model, initialise

TINY = TeleChatConfig(
    vocab_size=40,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_hidden_size=24,
    rope=RopeSettings(base_length=32, training_length=32),
    seq_length=32,
)
TIED = TINY.replace(tie_word_embeddings=True)
MIXTURE = TINY.replace(moe=MoeConfig(num_experts=4, num_experts_per_token=2))


def random_model(config: TeleChatConfig = TINY, seed: int = 0) -> TeleChatModel:
    model = build_model(config)
    initialise(model, seed=seed)
    return model.eval()


def tensors_of(
    model: TeleChatModel, dtype: torch.dtype = torch.float32, *, prefix: bool = True
) -> dict[str, Tensor]:
    """Copies of the model's tensors under official names; without `transformer.` as in the 7B's files."""
    state = {name: value.detach().to(dtype).clone() for name, value in model.named_parameters()}
    return state if prefix else {name.removeprefix("transformer."): value for name, value in state.items()}


def write_config(folder: Path, config: TeleChatConfig = TINY, **changes: Any) -> None:
    """config.json; a change to None removes the key."""
    raw = {**config.to_hf(), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    content = {key: value for key, value in raw.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")


def write_safetensors(folder: Path, tensors: dict[str, Tensor], name: str = "model.safetensors") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def write_bin(
    folder: Path, tensors: dict[str, Tensor], name: str = "pytorch_model.bin", *, is_zip: bool = True
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / name, _use_new_zipfile_serialization=is_zip)


def write_shards(folder: Path, tensors: dict[str, Tensor], kind: str) -> None:
    """Two shards with an index, `kind` is safetensors or bin."""
    names = sorted(tensors)
    halves = [names[::2], names[1::2]]
    stem, index, write = {
        "safetensors": ("model", "model.safetensors.index.json", write_safetensors),
        "bin": ("pytorch_model", "pytorch_model.bin.index.json", write_bin),
    }[kind]
    placed = {}
    for number, half in enumerate(halves, start=1):
        file = f"{stem}-{number:05d}-of-00002.{kind}"
        write(folder, {name: tensors[name] for name in half}, file)
        placed |= dict.fromkeys(half, file)
    content = {"metadata": {"total_size": 0}, "weight_map": placed}
    (folder / index).write_text(json.dumps(content), encoding="utf-8")


def write_folder(folder: Path, model: TeleChatModel) -> Path:
    """config.json and one safetensors file."""
    write_config(folder, model.config)
    write_safetensors(folder, tensors_of(model))
    return folder


def assert_same_weights(found: TeleChatModel, expected: TeleChatModel) -> None:
    ours, theirs = dict(found.named_parameters()), dict(expected.named_parameters())
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value.to(ours[name].dtype)), name
