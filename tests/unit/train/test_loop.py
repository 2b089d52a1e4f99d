"""The loop learns, resumes bitwise, and stops on a loss that is not a number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from telechat.data.samples import BatchArrays, fill_batch
from telechat.data.sequences import Encoded, SequenceBuilder, Sequences
from telechat.errors import CheckpointError, TelechatError
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, TeleChatModel, build_model, initialise
from telechat.train.adapters import adapter_config, add_adapters
from telechat.train.checkpoints import CheckpointStore
from telechat.train.config import (
    BatchSection,
    DataSection,
    EvaluationSection,
    LoraSection,
    ModelSection,
    OptimizerSection,
    OutputSection,
    RopeSection,
    ScheduleSection,
    TrainConfig,
)
from telechat.train.engine import LocalEngine
from telechat.train.feed import Feed
from telechat.train.flops import step_cost
from telechat.train.loop import Meter, Trainer
from telechat.train.metrics import Metrics, read_metrics
from telechat.train.objective import CrossEntropy
from telechat.train.precision import PRECISIONS
from telechat.train.schedule import plan_schedule

TINY = TeleChatConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    ffn_hidden_size=64,
    rope=RopeSettings(base_length=64, training_length=64),
)


class CountingSamples:
    """Forty rows that count upwards from different starts."""

    def __init__(self) -> None:
        builder = SequenceBuilder()
        for start in range(40):
            ids = list(range(start % 20 + 4, start % 20 + 4 + 8 + start % 5))
            builder.add(Encoded(ids, [True] * len(ids)))
        self.sequences: Sequences = builder.finish()

    @property
    def lengths(self) -> list[int]:
        lengths: list[int] = self.sequences.lengths.tolist()
        return lengths

    def batch(
        self, rows: Sequence[int], *, pad_id: int, num_rows: int | None = None, length: int | None = None
    ) -> BatchArrays:
        return fill_batch(
            self.sequences, [[row] for row in rows], pad_id=pad_id, num_rows=num_rows, length=length
        )

    def describe(self, samples: Sequence[int]) -> str:
        return f"rows {', '.join(map(str, samples))}"


def tiny_model(config: TeleChatConfig = TINY) -> TeleChatModel:
    model = build_model(config)
    initialise(model, seed=5)
    return model


def settings(folder: Path, *, optimizer: str = "adamw", total_steps: int = 12) -> TrainConfig:
    return TrainConfig(
        model=ModelSection(config="unused", tokenizer="unused"),
        data=DataSection(train_file="unused"),
        output=OutputSection(folder=str(folder), save_every=5, log_every=1),
        batch=BatchSection(tokens_per_step=120, micro_batches=2, rows_per_bucket=20),
        optimizer=OptimizerSection(name=optimizer, lr=1e-2),  # type: ignore[arg-type]
        schedule=ScheduleSection(total_steps=total_steps, warmup_steps=2),
        precision="fp32",
    )


def feed(config: TrainConfig, samples: CountingSamples | None = None) -> Feed:
    return Feed(samples or CountingSamples(), config.batch, row_length=None, pad_id=3, seed=config.seed)


def trainer(config: TrainConfig, *, model: TeleChatModel | None = None, evaluated: bool = False) -> Trainer:
    model = model or tiny_model()
    engine = LocalEngine(model, CrossEntropy(), config.optimizer, config.precision)
    shown = feed(config)
    return Trainer(
        engine,
        shown,
        plan_schedule(config.schedule, steps_per_epoch=shown.steps_per_epoch),
        config,
        checkpoints=CheckpointStore(Path(config.output.folder), keep_last=config.output.keep_last),
        meter=Meter(step_cost(model.config, model.named_parameters()), 1e9, 1),
        evaluation=feed(config) if evaluated else None,
    )


def metrics_of(of: Trainer) -> Metrics:
    return Metrics(Path(of.config.output.folder), resumed_step=of.step)


def weights_of(of: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in of.engine.weights()}


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "muon"])
def test_the_loss_falls(tmp_path: Path, optimizer: str) -> None:
    of = trainer(settings(tmp_path, optimizer=optimizer, total_steps=25))
    metrics = metrics_of(of)
    of.run(metrics)
    assert metrics.rows[-1]["loss"] < 0.7 * metrics.rows[0]["loss"]


@pytest.mark.parametrize("precision", ["bf16", "bf16-pure", "fp16"])
def test_the_loss_falls_in_every_precision(tmp_path: Path, precision: str) -> None:
    config = dataclasses.replace(settings(tmp_path, total_steps=12), precision=precision)  # type: ignore[arg-type]
    model = tiny_model().to(torch.bfloat16) if precision == "bf16-pure" else None
    of = trainer(config, model=model)
    metrics = metrics_of(of)
    of.run(metrics)
    assert metrics.rows[-1]["loss"] < 0.9 * metrics.rows[0]["loss"]
    assert ("loss_scale" in metrics.rows[-1]) == (precision == "fp16")


class Killed(BaseException):
    """Ends a run where it is."""


def kill_at(of: Trainer, step: int) -> None:
    """Train until the row of that step has been recorded."""
    metrics = metrics_of(of)

    def add(at: int, values: dict[str, float]) -> None:
        Metrics.add(metrics, at, values)
        if at == step:
            raise Killed

    metrics.add = add  # type: ignore[method-assign, assignment]
    with pytest.raises(Killed):
        of.run(metrics)
    of.checkpoints.close()


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "muon"])
def test_a_resumed_run_ends_bitwise_equal(tmp_path: Path, optimizer: str) -> None:
    """With dropout, so the draws of each step count as well."""
    model_config = TINY.replace(hidden_dropout=0.1, attention_dropout=0.1)
    whole = trainer(settings(tmp_path / "whole", optimizer=optimizer), model=tiny_model(model_config))
    whole.run(metrics_of(whole))
    config = settings(tmp_path / "halves", optimizer=optimizer)
    kill_at(trainer(config, model=tiny_model(model_config)), 7)
    resumed = trainer(config, model=tiny_model(model_config))
    assert resumed.resume() and resumed.step == 5
    metrics = metrics_of(resumed)
    resumed.run(metrics)
    for name, weight in weights_of(whole).items():
        assert torch.equal(weight, weights_of(resumed)[name]), name
    assert [row["step"] for row in metrics.rows] == list(range(1, 13))
    assert read_metrics(tmp_path / "halves" / "metrics.jsonl") == metrics.rows


def test_seeds_of_steps_differ(tmp_path: Path) -> None:
    """Two steps over the same rows draw other dropout masks."""
    of = trainer(settings(tmp_path), model=tiny_model(TINY.replace(hidden_dropout=0.5)))
    shown = next(of.feed.steps(0))
    draws = []
    for step in (3, 3, 4):
        of.step = step
        of._train_step(shown)
        draws.append(torch.rand(()).item())
    assert draws[0] == draws[1] != draws[2]


def test_evaluation_runs_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    config = dataclasses.replace(settings(tmp_path), evaluation=EvaluationSection(file="unused", every=5))
    of = trainer(config, evaluated=True)
    metrics = metrics_of(of)
    of.run(metrics)
    evaluated = [row for row in metrics.rows if "evaluation_loss" in row]
    assert [row["step"] for row in evaluated] == [5, 10, 12]
    assert evaluated[-1]["evaluation_loss"] < evaluated[0]["evaluation_loss"]


def test_rows_of_metrics_hold_speed_and_memory(tmp_path: Path) -> None:
    of = trainer(settings(tmp_path, total_steps=3))
    metrics = metrics_of(of)
    of.run(metrics)
    row = metrics.rows[-1]
    assert row["tokens_per_second"] > 0 and row["peak_memory_bytes"] > 50e6
    # 1e9 operations a second were claimed for the device; the model's own count decides the rest.
    cost = of.meter.cost.per_token + of.meter.cost.per_target
    assert row["mfu"] == pytest.approx(row["tokens_per_second"] * cost / 1e9, rel=0.3)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    config = settings(tmp_path)
    of = trainer(config)
    whole = weights_of(of)
    with torch.no_grad():
        of.engine.model.transformer.ln_f.weight.fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(TelechatError, match=r"loss is nan at step 1, for rows .* no state was saved"):
        of.run(metrics_of(of))
    assert of.checkpoints.steps() == []
    for name, weight in weights_of(of).items():
        assert name == "transformer.ln_f.weight" or torch.equal(weight, whole[name]), name


def test_the_batch_that_is_not_a_number_is_named_and_the_last_state_kept(tmp_path: Path) -> None:
    of = trainer(settings(tmp_path))
    backward = of.engine.backward

    def poisoned(batches):  # type: ignore[no-untyped-def]
        result = backward(batches)
        if of.step != 6:
            return result
        parts = result.parts.clone()
        parts[1] = float("inf")
        return dataclasses.replace(result, parts=parts, total=parts.sum())

    of.engine.backward = poisoned  # type: ignore[method-assign]
    with pytest.raises(TelechatError) as caught:
        of.run(metrics_of(of))
    shown = next(of.feed.steps(6))
    assert "inf at step 7" in caught.value.message
    assert f"for rows {', '.join(map(str, shown.samples[1]))};" in caught.value.message
    assert "the last good state is that of step 5" in caught.value.message
    of.checkpoints.close()
    again = trainer(settings(tmp_path))
    assert again.resume() and again.step == 5


def test_rows_of_another_process_are_left_to_it(tmp_path: Path) -> None:
    of = trainer(settings(tmp_path))
    backward = of.engine.backward
    of.engine.backward = lambda batches: dataclasses.replace(  # type: ignore[method-assign]
        backward(batches), total=torch.tensor(float("nan"))
    )
    with pytest.raises(TelechatError, match="for rows that another process names;"):
        of.run(metrics_of(of))


def test_an_overflow_in_fp16_skips_the_step_and_the_second_one_halves_the_scale(tmp_path: Path) -> None:
    of = trainer(dataclasses.replace(settings(tmp_path), precision="fp16"))
    of.engine.loss_scale.scale = 2.0**40
    before = weights_of(of)
    for scale in (2.0**40, 2.0**39):
        of._train_step(next(of.feed.steps(0)))
        assert of.engine.loss_scale.scale == scale
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(of).items())


def test_the_schedule_and_clipping_reach_the_optimizer(tmp_path: Path) -> None:
    of = trainer(settings(tmp_path))
    of._train_step(next(of.feed.steps(0)))
    assert of.engine.learning_rate() == pytest.approx(0.5e-2)  # the first of two warm-up steps
    clipped = dataclasses.replace(settings(tmp_path / "b").optimizer, max_grad_norm=1e-9, eps=1.0)
    held = trainer(dataclasses.replace(settings(tmp_path / "b"), optimizer=clipped))
    before = weights_of(held)
    held._train_step(next(held.feed.steps(0)))
    decayed = 1 - 0.5e-2 * 0.1
    for name, weight in weights_of(held).items():
        expected = before[name] * (decayed if weight.dim() > 1 else 1.0)
        torch.testing.assert_close(weight, expected, atol=1e-9, rtol=1e-6, msg=name)


@pytest.mark.parametrize("other", ["adamw", "muon"])
def test_moments_of_another_optimizer_are_refused(tmp_path: Path, other: str) -> None:
    """AdamW's moments and those in 8 bits have the same names and shapes."""
    trainer(settings(tmp_path, optimizer="adamw-8bit", total_steps=3)).run()
    with pytest.raises(CheckpointError, match=r"Cannot resume from .*"):
        trainer(settings(tmp_path, optimizer=other, total_steps=3)).resume()


def test_an_adapter_of_another_meaning_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All of these fit the checkpoint in names and shapes."""
    plain = settings(tmp_path, total_steps=3)

    def adapted(start_from: str = "base", **changes: Any) -> Trainer:
        section = LoraSection(**{"rank": 4, "dora": True, **changes})
        model = tiny_model()
        add_adapters(model, section, adapter_config(section, ""), PRECISIONS["fp32"], seed=3)
        lora_config = dataclasses.replace(plain, lora=section, model=ModelSection(start_from=start_from))
        return trainer(lora_config, model=model)

    adapted().run()
    for changes in ({"dora": False}, {"alpha": 4.0}, {"rslora": True}, {"targets": ("query",)}):
        name = next(iter(changes))
        with pytest.raises(CheckpointError, match=rf"Cannot resume .*: lora\.{name} is "):
            adapted(**changes).resume()
    assert adapted(dropout=0.1, merge=True).resume()
    assert "model.start_from" not in caplog.text
    assert adapted("moved/base").resume() and "model.start_from is moved/base here" in caplog.text


def test_other_positions_on_resuming_are_refused(tmp_path: Path) -> None:
    config = settings(tmp_path, total_steps=3)
    trainer(config).run()
    longer = dataclasses.replace(config.model, rope=RopeSection(theta=1e6))
    with pytest.raises(CheckpointError, match=r"Cannot resume .*: model\.rope is .*1000000"):
        trainer(dataclasses.replace(config, model=longer)).resume()


def test_other_data_on_resuming_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = settings(tmp_path, total_steps=5)
    trainer(config).run()
    trainer(config).resume()
    assert "is not that of the checkpoint" not in caplog.text
    trainer(dataclasses.replace(config, seed=7)).resume()
    assert "is not that of the checkpoint" in caplog.text
