"""A whole LoRA run: what it writes, and that both spellings and the merged weights agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from telechat.checkpoint import load_model, merge_adapter, read_adapter
from telechat.cli.main import main as quantize
from telechat.errors import ConfigError
from telechat.train.run import main

IDS = torch.tensor([[1, 20, 30, 40, 50, 60, 70]])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    row = {
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "world, 生抽"},
        ]
    }
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(8)), encoding="utf-8")
    return path


def run(model: Path, rows: Path, folder: Path, **more: str) -> Path:
    settings = {
        "model.start_from": str(model),
        "data.train_file": str(rows),
        "data.max_length": "256",
        "output.folder": str(folder),
        "output.dtype": "float32",
        "batch.tokens_per_step": "2048",
        "batch.micro_batches": "1",
        "optimizer.lr": "0.05",
        "schedule.total_steps": "3",
        "precision": "fp32",
        "device": "cpu",
    }
    return main(None, settings | more)


def logits(model_folder: Path, adapter_folder: Path | None = None) -> torch.Tensor:
    model = load_model(model_folder, device="cpu", dtype="float32")
    if adapter_folder is not None:
        merge_adapter(model, read_adapter(adapter_folder, model.config))
    out: torch.Tensor = model(IDS)
    return out.detach()


def test_adapters_in_both_spellings_and_merged(tiny_model_folder: Path, rows: Path, tmp_path: Path) -> None:
    result = run(tiny_model_folder, rows, tmp_path, **{"lora.rank": "4", "lora.merge": "true"})
    assert result == tmp_path / "model"
    expected = logits(result)
    assert not torch.allclose(expected, logits(tiny_model_folder), atol=1e-2)
    for name in ("adapter", "adapter-llama"):
        torch.testing.assert_close(logits(tiny_model_folder, tmp_path / name), expected, atol=1e-4, rtol=1e-4)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 4 and settings["base_model_name_or_path"] == str(tiny_model_folder)


def test_only_an_adapter_is_written_unless_asked(tiny_model_folder: Path, rows: Path, tmp_path: Path) -> None:
    result = run(tiny_model_folder, rows, tmp_path, **{"lora.targets": "query"})
    assert result == tmp_path / "adapter"
    assert not (tmp_path / "model").exists()
    assert not torch.allclose(logits(tiny_model_folder, result), logits(tiny_model_folder), atol=1e-3)


def test_weights_that_cannot_be_packed_are_named(tiny_model_folder: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"down_proj.* cannot be quantised: its 48 inputs"):
        run(tiny_model_folder, rows, tmp_path, **{"lora.quantize": "int4"})


def test_a_run_that_is_resumed_ends_as_one_that_was_not(
    tiny_model_folder: Path, rows: Path, tmp_path: Path
) -> None:
    options = {"lora.dropout": "0.2", "output.save_every": "2", "schedule.name": "constant"}
    run(tiny_model_folder, rows, tmp_path / "whole", **options, **{"schedule.total_steps": "4"})
    halves = tmp_path / "halves"
    run(tiny_model_folder, rows, halves, **options, **{"schedule.total_steps": "2"})
    run(tiny_model_folder, rows, halves, **options, **{"schedule.total_steps": "4"})
    name = "adapter_model.safetensors"
    assert (halves / "adapter" / name).read_bytes() == (tmp_path / "whole" / "adapter" / name).read_bytes()


def test_all_weights_of_a_quantised_folder_are_not_trained(rows: Path, tmp_path: Path) -> None:
    quantize(["quantize", "run", "demo", str(tmp_path / "int4")])
    with pytest.raises(ConfigError, match="int4 holds quantised weights") as caught:
        run(tmp_path / "int4", rows, tmp_path / "run")
    assert caught.value.hint is not None and "section lora" in caught.value.hint


def test_what_an_adapter_lacks_of_its_base_is_said(
    tiny_model_folder: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"lora.rank": "2", "schedule.total_steps": "1", "model.rope.theta": "50000"}
    run(tiny_model_folder, rows, tmp_path / "merged", **more, **{"lora.merge": "true"})
    assert "adapter/ does not hold" not in caplog.text
    run(tiny_model_folder, rows, tmp_path / "alone", **more)
    assert "adapter/ does not hold the settings of model.rope" in caplog.text
    fresh = {
        "model.start_from": "",
        "model.config": str(tiny_model_folder / "config.json"),
        "model.tokenizer": str(tiny_model_folder),
    }
    run(tiny_model_folder, rows, tmp_path / "fresh", **more, **fresh)
    assert "the base of this adapter is fresh" in caplog.text
