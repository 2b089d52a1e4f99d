"""The loop learns, resumes bitwise, and stops on a loss that is not a number."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from telechat.errors import TelechatError
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, TeleChatModel, build_model, initialise
from telechat.train.config import (
    BatchSection,
    DataSection,
    ModelSection,
    OptimizerSection,
    OutputSection,
    ScheduleSection,
    TrainConfig,
)
from telechat.train.loop import Trainer
from telechat.train.optimizer import learning_rate_factor
from telechat.train.report import Metrics, read_metrics, write_loss_page
from telechat.train.samples import SampleSet

TINY = TeleChatConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    ffn_hidden_size=64,
    rope=RopeSettings(base_length=64, training_length=64),
)


def tiny_model() -> TeleChatModel:
    model = build_model(TINY)
    initialise(model, seed=5)
    return model


def counting_samples() -> SampleSet:
    """Forty rows that count upwards from different starts."""
    rows = [np.arange(start % 20 + 4, start % 20 + 4 + 8 + start % 5, dtype=np.int32) for start in range(40)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return SampleSet(np.concatenate(rows), np.ones(int(offsets[-1]), dtype=np.bool_), offsets, {})


def settings(folder: Path, *, optimizer: str = "adamw", total_steps: int = 12) -> TrainConfig:
    return TrainConfig(
        model=ModelSection(config="unused"),
        data=DataSection(train_file="unused"),
        output=OutputSection(folder=str(folder), save_every=5, log_every=1),
        batch=BatchSection(tokens_per_step=120, micro_batches=2, rows_per_bucket=20),
        optimizer=OptimizerSection(name=optimizer, lr=1e-2),  # type: ignore[arg-type]
        schedule=ScheduleSection(total_steps=total_steps, warmup_steps=2),
        precision="fp32",
    )


def train(folder: Path, config: TrainConfig, *, resume: bool = False) -> tuple[TeleChatModel, Metrics]:
    model = tiny_model()
    trainer = Trainer(model, counting_samples(), config)
    assert trainer.resume() == resume
    metrics = Metrics(folder, resumed_step=trainer.step, total_steps=config.schedule.total_steps)
    trainer.run(metrics)
    return model, metrics


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls(tmp_path: Path, optimizer: str) -> None:
    _, metrics = train(tmp_path, settings(tmp_path, optimizer=optimizer, total_steps=60))
    assert metrics.rows[-1]["loss"] < 0.5 * metrics.rows[0]["loss"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_ends_bitwise_equal(tmp_path: Path, optimizer: str) -> None:
    whole, _ = train(tmp_path / "whole", settings(tmp_path / "whole", optimizer=optimizer))
    halves = settings(tmp_path / "halves", optimizer=optimizer)
    trainer = Trainer(tiny_model(), counting_samples(), halves)
    metrics = Metrics(tmp_path / "halves", resumed_step=0, total_steps=12)

    def killed_at_7(**row: float) -> None:
        Metrics.add(metrics, **row)
        if row["step"] == 7:
            raise KeyboardInterrupt

    metrics.add = killed_at_7  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run(metrics)
    resumed, resumed_metrics = train(tmp_path / "halves", halves, resume=True)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [row["step"] for row in resumed_metrics.rows] == list(range(1, 13))
    assert read_metrics(tmp_path / "halves" / "metrics.jsonl") == resumed_metrics.rows


def test_micro_batches_do_not_change_the_step(tmp_path: Path) -> None:
    """Every learnt token weighs alike however the step is cut."""
    trainer = Trainer(tiny_model(), counting_samples(), settings(tmp_path))
    together = Trainer(tiny_model(), counting_samples(), settings(tmp_path))
    trainer._train_step([[0, 1, 2], [3]])
    together._train_step([[0, 1, 2, 3]])
    for a, b in zip(trainer.model.parameters(), together.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_only_learnt_tokens_count(tmp_path: Path) -> None:
    samples = counting_samples()
    unlearnt = dataclasses.replace(samples, learnt=samples.learnt.copy())
    unlearnt.learnt[samples.offsets[3] : samples.offsets[4]] = False
    both = Trainer(tiny_model(), unlearnt, settings(tmp_path))._train_step([[2, 3]])[0]
    alone = Trainer(tiny_model(), samples, settings(tmp_path))._train_step([[2]])[0]
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    trainer = Trainer(model, counting_samples(), settings(tmp_path))
    with pytest.raises(TelechatError, match="loss is nan at step 1"):
        trainer.run(Metrics(tmp_path, resumed_step=0, total_steps=12))
    assert not trainer.state_path.exists()


def test_compile_is_obeyed_where_a_compiler_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiled_blocks(where: str | None) -> int:
        monkeypatch.setattr("telechat.train.loop.shutil.which", lambda name: where)
        calls: list[object] = []
        monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kwargs: calls.append(self))
        Trainer(tiny_model(), counting_samples(), dataclasses.replace(settings(tmp_path), compile=True))
        return len(calls)

    assert compiled_blocks("/usr/bin/g++") == TINY.num_layers
    assert compiled_blocks(None) == 0
    assert "no C++ compiler found" in caplog.text


def test_schedule_warms_up_holds_and_decays() -> None:
    schedule = ScheduleSection(total_steps=100, warmup_steps=10, decay_fraction=0.5)
    factors = [learning_rate_factor(step, schedule) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:50] == [1.0] * 41
    assert factors[75] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.02)


def test_loss_page_stands_alone(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 5.0 / step} for step in range(1, 50)]
    write_loss_page(rows, tmp_path / "loss.html", title="A <run>")
    page = (tmp_path / "loss.html").read_text()
    assert "<polyline" in page and "A &lt;run&gt;" in page
    assert "http" not in page and "src=" not in page
