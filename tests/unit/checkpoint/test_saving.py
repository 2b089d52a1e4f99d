"""Saved folders are official folders: names, index, config; whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.unit.checkpoint.folders import (
    MIXTURE,
    TIED,
    TINY,
    assert_same_weights,
    random_model,
    tensors_of,
    write_bin,
    write_config,
    write_shards,
)

from telechat import load_model
from telechat.checkpoint import save as save_module
from telechat.checkpoint import save_model
from telechat.errors import CheckpointError
from telechat.models import parameter_table
from telechat.quant.rtn import quantize_model


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_file(tmp_path: Path) -> None:
    model = random_model()
    save_model(model, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert names_in(folder) == ["config.json", "model.safetensors"]
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses files without
        assert set(file.keys()) == {parameter.name for parameter in parameter_table(TINY)}
    raw = json.loads((folder / "config.json").read_text())
    assert raw["torch_dtype"] == "float32"
    assert raw["model_type"] == "telechat"


def test_tied_head_is_not_stored(tmp_path: Path) -> None:
    save_model(random_model(TIED), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("config", [TINY, TIED, MIXTURE], ids=["untied", "tied", "mixture"])
@pytest.mark.parametrize("max_shard_bytes", [1, 3000, 10**9])
def test_round_trip(tmp_path: Path, config: object, max_shard_bytes: int) -> None:
    model = random_model(config)  # type: ignore[arg-type]
    save_model(model, tmp_path, max_shard_bytes=max_shard_bytes)
    loaded = load_model(tmp_path, device="cpu")
    assert loaded.config == config
    assert_same_weights(loaded, model)


def test_shards(tmp_path: Path) -> None:
    model = random_model()
    save_model(model, tmp_path, max_shard_bytes=3000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    tensors = tensors_of(model)
    assert index["metadata"]["total_size"] == sum(value.numel() * 4 for value in tensors.values())
    assert set(index["weight_map"]) == set(tensors)
    for name in set(index["weight_map"].values()):
        content = load_file(tmp_path / name)
        assert set(content) == {key for key, place in index["weight_map"].items() if place == name}
        assert len(content) == 1 or sum(value.numel() * 4 for value in content.values()) <= 3000
    assert not [name for name in names_in(tmp_path) if "writing" in name]


def test_dtype_on_disk(tmp_path: Path) -> None:
    model = random_model()
    save_model(model, tmp_path, dtype=torch.bfloat16)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert model.dtype == torch.float32


@pytest.mark.parametrize("earlier", ["safetensors", "bin", "one bin"])
def test_earlier_weights_are_replaced(tmp_path: Path, earlier: str) -> None:
    """An index that stayed behind would be read instead of the new file."""
    old, new = tensors_of(random_model(seed=1)), random_model(seed=2)
    write_config(tmp_path)
    if earlier == "one bin":
        write_bin(tmp_path, old)
    else:
        write_shards(tmp_path, old, earlier)
    (tmp_path / "tokenizer.json").write_text("{}")
    save_model(new, tmp_path)
    assert names_in(tmp_path) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert_same_weights(load_model(tmp_path, device="cpu"), new)


def test_interrupted_save_keeps_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = random_model(seed=1)
    save_model(old, tmp_path)
    calls = []

    def fail_at_the_third(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        original(*args, **kwargs)  # type: ignore[arg-type]

    original = save_module.save_file
    monkeypatch.setattr(save_module, "save_file", fail_at_the_third)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_model(random_model(seed=2), tmp_path, max_shard_bytes=3000)
    assert names_in(tmp_path) == ["config.json", "model.safetensors"]
    assert_same_weights(load_model(tmp_path, device="cpu"), old)


def test_saving_over_the_folder_the_model_came_from(tmp_path: Path) -> None:
    save_model(random_model(), tmp_path)
    model = load_model(tmp_path, device="cpu")
    expected = random_model()
    save_model(model, tmp_path, max_shard_bytes=3000)
    assert_same_weights(model, expected)
    assert_same_weights(load_model(tmp_path, device="cpu"), expected)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="max_shard_bytes is 0"):
        save_model(random_model(), tmp_path, max_shard_bytes=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Cannot write the model"):
        save_model(random_model(), tmp_path / "file")


@pytest.mark.parametrize("taken", ["floats", "integers", "embedding"])
def test_a_model_whose_weights_an_engine_has_taken(taken: str, tmp_path: Path) -> None:
    model = random_model(TINY.replace(hidden_size=32, ffn_hidden_size=32))
    save_model(model, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    if taken == "integers":
        quantize_model(model, 4, 32)
        model.transformer.blocks[1].mlp.up_proj.release()
    else:  # as `models.packing` leaves them
        layer = (
            model.transformer.blocks[1].mlp.up_proj
            if taken == "floats"
            else model.transformer.word_embeddings
        )
        layer.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(CheckpointError, match=r"(up_proj|word_embeddings)\.weight is not in it whole"):
        save_model(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "left", ["quant_model_description.json", "quantize_config.json", "part0-of-2/", ".metadata"]
)
def test_a_folder_of_another_form_is_refused_and_stays(tmp_path: Path, left: str) -> None:
    if left.endswith("/"):
        for name in ("part0-of-2", "part1-of-2"):
            (tmp_path / name).mkdir()
    else:
        (tmp_path / left).write_text("{}")
    before = names_in(tmp_path)
    with pytest.raises(CheckpointError, match=r"of which .* would stay"):
        save_model(random_model(), tmp_path)
    assert names_in(tmp_path) == before
