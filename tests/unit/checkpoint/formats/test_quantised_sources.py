"""Quantised folders as sources of conversions, and files about other weights beside a source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.checkpoint.formats.samples import DENSE, model_folder, with_tokenizer

from telechat.checkpoint.formats.hf import companion_files
from telechat.checkpoint.formats.opening import open_checkpoint
from telechat.cli.main import main
from telechat.errors import CheckpointError


@pytest.mark.parametrize("name", ["qweight", "weight_packed", "weight_scale", "deq_scale"])
@pytest.mark.parametrize("to", ["hf", "llama"])
def test_a_source_that_is_quantised_is_called_so(name: str, to: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["checkpoint", "convert", str(model_folder(tmp_path / "model")), str(out), "--to", to]) == 0
    tensors = load_file(out / "model.safetensors")
    weight = next(key for key in tensors if key.endswith("up_proj.weight"))
    tensors[weight.removesuffix("weight") + name] = torch.zeros(1)
    save_file({key: value for key, value in tensors.items() if key != weight}, out / "model.safetensors")
    with pytest.raises(CheckpointError, match="out is quantised"):
        open_checkpoint(out)


def test_what_belongs_to_other_weights_is_not_copied(tmp_path: Path) -> None:
    folder = with_tokenizer(model_folder(tmp_path / "model", DENSE))
    kept = set(companion_files(folder))
    others = ("quantize_config.json", "quant_config.json", "adapter_config.json", "telechat-source.json")
    described = ("quant_model_description.json", "quant_model_description_w8a8.json")
    for name in (*others, *described, "quant_model_weight_w8a8.safetensors.index.json"):
        (folder / name).write_text(json.dumps({"bits": 4}))
    assert (
        set(companion_files(folder))
        == kept
        == {
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
        }
    )
