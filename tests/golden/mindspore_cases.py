"""Files written by the real MindSpore, and the torch files they were made from."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tests.shared_data import shared_path
from torch import Tensor

from telechat.checkpoint.formats.hf import open_named
from telechat.checkpoint.formats.lazy import LazyTensor
from telechat.checkpoint.formats.safetensors_file import read_safetensors
from telechat.checkpoint.formats.table import Checkpoint
from telechat.checkpoint.formats.writing import FilePlan, TargetPlan, write_target

DATA = Path(__file__).parent / "data" / "mindspore"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def mindspore_path(relative: str) -> Path:
    """A recorded file; skips the test where it is one of those that are not in this repository."""
    own = DATA / relative
    return own if own.exists() else shared_path(f"golden/mindspore/{relative}")


def source(case: str) -> Checkpoint:
    """The torch model that a case was made from."""
    folder = mindspore_path(f"{case}/torch")
    config = folder / "config.json"
    raw = json.loads(config.read_text(encoding="utf-8")) if config.exists() else TELECHAT1_7B
    return open_named(read_safetensors(folder / "model.safetensors"), raw, case, folder)


# The recording of the TeleChat1-7B has no config.json of its own.
TELECHAT1_7B = {
    "model_type": "telechat", "hidden_size": 32, "n_head": 4, "num_key_value_heads": 2, "n_layer": 2,
    "ffn_hidden_size": 48, "vocab_size": 64, "tie_word_embeddings": True,
}  # fmt: skip


def written(folder: Path, plan: FilePlan) -> bytes:
    """The bytes of a file written by its plan."""
    target = folder / "written"
    target.unlink(missing_ok=True)
    write_target(target, TargetPlan(files=(plan,), is_file=True))
    return target.read_bytes()


def read_all(tensors: dict[str, LazyTensor]) -> dict[str, Tensor]:
    """Every tensor, read."""
    return {name: tensor.read() for name, tensor in tensors.items()}


def assert_same(
    found: dict[str, LazyTensor], expected: dict[str, LazyTensor], dtype: torch.dtype | None = None
) -> None:
    """Same names, and every tensor equal bit for bit, the expected ones rounded to `dtype`."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        wanted = tensor.read()
        wanted = wanted if dtype is None else wanted.to(dtype)
        got = found[name].read()
        assert got.dtype == wanted.dtype, name
        assert torch.equal(got, wanted), name
