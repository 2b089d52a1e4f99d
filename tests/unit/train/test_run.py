"""A run from its recipe: what each setting changes in what is trained and written."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from telechat.checkpoint import read_config
from telechat.errors import ConfigError, DeviceError
from telechat.layers import rotary
from telechat.tokenizer import load_tokenizer
from telechat.train.config import (
    BatchSection,
    DataSection,
    ModelSection,
    OutputSection,
    RopeScheme,
    RopeSection,
    TrainConfig,
)
from telechat.train.metrics import read_metrics
from telechat.train.run import main, open_feed
from telechat.train.setup import model_config, prepare_blocks, prepare_model


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    pairs = [("hello", "world"), ("生抽", "老抽"), ("颜色", "味道"), ("one", "two three")]
    path.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]})
            + "\n"
            for a, b in pairs * 4
        ),
        encoding="utf-8",
    )
    return path


def run(model: Path, rows: Path, folder: Path, **more: str) -> Path:
    settings = {
        "model.start_from": str(model),
        "data.train_file": str(rows),
        "data.max_length": "256",
        "output.folder": str(folder),
        "output.log_every": "1",
        "batch.tokens_per_step": "1024",
        "batch.micro_batches": "2",
        "schedule.total_steps": "2",
        "precision": "fp32",
        "device": "cpu",
    }
    return main(None, settings | more)


def train_config(model: Path, **more: Any) -> TrainConfig:
    return TrainConfig(
        model=ModelSection(start_from=str(model)),
        data=DataSection(train_file="unused"),
        output=OutputSection(folder="unused"),
        precision="fp32",
        **more,
    )


def test_a_run_writes_model_metrics_curves_recipe_and_checkpoint(
    tiny_model_folder: Path, rows: Path, tmp_path: Path
) -> None:
    result = run(tiny_model_folder, rows, tmp_path, **{"evaluation.file": str(rows), "evaluation.every": "1"})
    assert result == tmp_path / "model"
    stored = load_file(result / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert (result / "tokenizer.json").exists()
    assert (result / "generation_config.json").read_text() == (
        tiny_model_folder / "generation_config.json"
    ).read_text()
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in metrics if "loss" in row] == [1, 2]
    assert [row["step"] for row in metrics if "evaluation_loss" in row] == [1, 2]
    assert "evaluation loss" in (tmp_path / "loss.html").read_text()
    assert "start_from" in (tmp_path / "run.yaml").read_text()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_finished_run_writes_the_same_result_again(
    tiny_model_folder: Path, rows: Path, tmp_path: Path
) -> None:
    first = load_file(run(tiny_model_folder, rows, tmp_path) / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    again = load_file(run(tiny_model_folder, rows, tmp_path) / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize("packing", [False, True])
def test_packing_puts_several_conversations_into_a_row(
    tiny_model_folder: Path, rows: Path, packing: bool
) -> None:
    batch = BatchSection(tokens_per_step=2048, micro_batches=1, packing=packing)
    config = train_config(tiny_model_folder, batch=batch)
    engine = SimpleNamespace(data_rank=0, data_size=1)
    feed = open_feed(config, str(rows), load_tokenizer(tiny_model_folder), engine)  # type: ignore[arg-type]
    batches = list(feed.one_pass())
    assert any(batch.is_packed for batch in batches) == packing
    assert (max(int(batch.segments.max()) for batch in batches) > 3) == packing


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_result_has_the_format_asked_for(
    tiny_model_folder: Path, rows: Path, tmp_path: Path, dtype: str
) -> None:
    result = run(tiny_model_folder, rows, tmp_path, **{"output.dtype": dtype})
    assert load_file(result / "model.safetensors")["lm_head.weight"].dtype == getattr(torch, dtype)
    assert json.loads((result / "config.json").read_text())["torch_dtype"] == dtype


def test_a_greater_length_is_trained_and_told_to_inference(
    tiny_model_folder: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match="max_length is 4096; this model is trained at up to 1024"
    ) as caught:
        run(tiny_model_folder, rows, tmp_path / "refused", **{"data.max_length": "4096"})
    assert caught.value.hint is not None and "model.rope.training_length to 4096" in caught.value.hint
    more = {
        "data.max_length": "4096",
        "batch.tokens_per_step": "8192",
        "model.rope.training_length": "4096",
        "model.rope.theta": "1000000",
        "model.rope.scheme": "none",
    }
    saved = read_config(run(tiny_model_folder, rows, tmp_path / "long", **more))
    assert (saved.training_seqlen, saved.seq_length) == (4096, 4096)
    assert (saved.rope.base, saved.rope.scheme, saved.rope.base_length) == (1e6, "none", 1024)


def test_rotary_settings_reach_the_tables(tiny_model_folder: Path) -> None:
    section = ModelSection(start_from=str(tiny_model_folder), rope=RopeSection(training_length=4096))
    config = train_config(tiny_model_folder)
    plain = prepare_model(config, torch.device("cpu"))
    longer = prepare_model(
        TrainConfig(model=section, data=config.data, output=config.output, precision="fp32"),
        torch.device("cpu"),
    )
    assert plain.rotary.settings.stretch(100) == (1, 1.0)
    assert longer.rotary.settings.stretch(100) == (7, 1.0)  # NTK for four times the base length
    assert longer.config == model_config(section)


def test_every_rotary_setting_replaces_the_models_own(tiny_model_folder: Path) -> None:
    rope = RopeSection(training_length=4096, base_length=512, theta=5e5, scheme="ntk-static", factor=3.0)
    settings = model_config(ModelSection(start_from=str(tiny_model_folder), rope=rope)).rope
    found = (settings.training_length, settings.base_length, settings.base, settings.scheme, settings.factor)
    assert found == (4096, 512, 5e5, "ntk-static", 3.0)
    assert set(get_args(RopeScheme)) == set(get_args(rotary.RopeScheme))


def test_the_output_section_is_obeyed(
    tiny_model_folder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[int] = []
    opened: list[int] = []
    logger = SimpleNamespace(add=lambda step, values: logged.append(step), close=lambda: logged.append(-1))

    def open_loggers(names: tuple[str, ...], *_: object, resumed_step: int) -> list[SimpleNamespace]:
        opened.append(resumed_step)
        return [logger] * len(names)

    monkeypatch.setattr("telechat.train.run.open_loggers", open_loggers)
    more = {
        "output.keep_last": "1",
        "output.save_every": "2",
        "output.log_every": "2",
        "output.loggers": "wandb",
        "schedule.total_steps": "5",
    }
    run(tiny_model_folder, rows, tmp_path, **more)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 5]
    assert logged == [2, 4, 5, -1]
    run(tiny_model_folder, rows, tmp_path, **more | {"schedule.total_steps": "6"})
    assert opened == [0, 5] and logged[4:] == [6, -1]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-pure", "bfloat16"), ("bf16", "float32")])
def test_the_precision_decides_what_weights_are_kept_in(
    tiny_model_folder: Path, precision: str, dtype: str
) -> None:
    config = dataclasses.replace(train_config(tiny_model_folder), precision=precision)  # type: ignore[arg-type]
    assert prepare_model(config, torch.device("cpu")).dtype == getattr(torch, dtype)


def test_the_device_is_that_of_the_recipe(tiny_model_folder: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="xpu:7"):
        run(tiny_model_folder, rows, tmp_path, device="xpu:7")


def test_a_fresh_model_comes_from_its_config_and_seed(
    tiny_model_folder: Path, rows: Path, tmp_path: Path
) -> None:
    weights = []
    for number, seed in enumerate(("1", "1", "2")):
        more = {
            "model.start_from": "",
            "model.config": str(tiny_model_folder / "config.json"),
            "model.tokenizer": str(tiny_model_folder),
            "schedule.total_steps": "1",
            "seed": seed,
        }
        result = run(tiny_model_folder, rows, tmp_path / str(number), **more)
        weights.append(load_file(result / "model.safetensors")["lm_head.weight"])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_an_attention_form_by_name_runs_or_fails(tiny_model_folder: Path) -> None:
    model = prepare_model(train_config(tiny_model_folder, attention="reference"), torch.device("cpu"))
    assert model.attention_choice is not None and model.attention_choice.name == "reference"
    bound = model.transformer.blocks[0].self_attention.attention
    assert bound is model.attention_choice.function
    with pytest.raises(DeviceError, match="flash cannot run"):
        prepare_model(train_config(tiny_model_folder, attention="flash"), torch.device("cpu"))


def test_recompute_reaches_the_blocks(tiny_model_folder: Path) -> None:
    config = train_config(tiny_model_folder, recompute="full")
    model = prepare_model(config, torch.device("cpu"))
    prepare_blocks(model.transformer.blocks, config)
    assert all(isinstance(block.forward, partial) for block in model.transformer.blocks)


def test_compile_is_obeyed_where_a_compiler_is_found(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = train_config(tiny_model_folder, compile=True)
    model = prepare_model(config, torch.device("cpu"))
    calls: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kwargs: calls.append(self))
    for where, expected in (("/usr/bin/g++", 2), (None, 0)):
        calls.clear()
        monkeypatch.setattr("telechat.train.setup.shutil.which", lambda name, where=where: where)
        prepare_blocks(model.transformer.blocks, config)
        assert len(calls) == expected
    assert "no C++ compiler found" in caplog.text


@pytest.mark.parametrize(("precision", "factor"), [("bf16", None), ("bf16", 30.4), ("fp32", 30.4)])
def test_a_format_without_instructions_is_reported(
    tiny_model_folder: Path,
    rows: Path,
    tmp_path: Path,
    precision: str,
    factor: float | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("telechat.train.run.slower_than_fp32", lambda device, rate: factor)
    run(tiny_model_folder, rows, tmp_path, **{"schedule.total_steps": "1", "precision": precision})
    said = "fp32 are 30 times as fast; train with --precision fp32" in caplog.text
    assert said == (precision == "bf16" and factor is not None)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "exactly one of model.config"),
        ({"config": "a", "start_from": "b"}, "exactly one of model.config"),
        ({"config": "a"}, "needs model.tokenizer"),
    ],
)
def test_what_to_train_must_be_clear(model: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelSection(**model)
