"""Runs on preferences: losses of real batches, references by the start weights, pairs and thumbs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.train.losses.preference_cases import our_loss
from tests.unit.train.test_engine import packed_batch
from tests.unit.train.test_loop import tiny_model
from tests.unit.train.test_run_adapters import run
from torch import Tensor

from telechat.data.sequences import Encoded, SequenceBuilder
from telechat.errors import ConfigError
from telechat.models import TeleChatModel
from telechat.serve.page.votes import Vote, VoteFolder
from telechat.train.batch import Batch
from telechat.train.config import (
    BatchSection,
    DataSection,
    ModelSection,
    OptimizerSection,
    OutputSection,
    TrainConfig,
)
from telechat.train.engine import LocalEngine
from telechat.train.metrics import read_metrics
from telechat.train.preference import PreferenceBatch, PreferenceObjective
from telechat.train.preference_data import measure_references
from telechat.train.preference_settings import PreferenceSection

UPPER = [[4, 5, 6, 7], [20, 21, 22, 23, 24], [30, 31, 32]]
LOWER = [[4, 5, 9], [20, 21, 40, 41, 42, 43], [30, 31, 50]]
PROMPT = 2
SETTINGS = {
    "dpo": {"beta": 0.3},
    "orpo": {"beta": 0.5},
    "simpo": {"beta": 2.0, "gamma": 0.4},
    "kto": {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7},
}
REFERENCE = -torch.linspace(4, 20, 6)
IS_GOOD = torch.tensor([True, False, True])


def preference_batch(*, padding: int) -> PreferenceBatch:
    """Three rows in each half, then `padding` empty ones; prompts teach nothing."""
    empty: list[list[list[int]]] = [[] for _ in range(padding)]
    plain = packed_batch([[row] for row in UPPER] + empty + [[row] for row in LOWER] + empty, length=8)
    plain.targets[:, : PROMPT - 1] = -100

    def halves(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values.view(2, -1), (0, padding)).flatten()

    return PreferenceBatch(
        **vars(plain),
        num_pairs=3,
        reference=halves(REFERENCE),
        is_good=torch.nn.functional.pad(IS_GOOD, (0, padding)),
    )


def row_log_probabilities(model: TeleChatModel, rows: list[list[int]], *, means: bool) -> Tensor:
    """Of the tokens after the prompt, one row at a time."""
    found = []
    for row in rows:
        logits = model(torch.tensor([row]))[0, PROMPT - 1 : -1].log_softmax(-1)
        tokens = logits.gather(1, torch.tensor(row[PROMPT:])[:, None])
        found.append(tokens.mean() if means else tokens.sum())
    return torch.stack(found)


@pytest.mark.parametrize("loss", SETTINGS)
@pytest.mark.parametrize("padding", [0, 5])
def test_a_step_minimises_the_loss_of_the_answers(
    loss: str, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    section = PreferenceSection(loss=loss, **SETTINGS[loss])  # type: ignore[arg-type]
    engine = LocalEngine(model, PreferenceObjective(section), OptimizerSection(), "fp32")
    got = engine.backward([preference_batch(padding=padding)])
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    means = loss in ("orpo", "simpo")
    inputs = {
        "first": row_log_probabilities(model, UPPER, means=means),
        "second": row_log_probabilities(model, LOWER, means=means),
        "reference_first": REFERENCE[:3],
        "reference_second": REFERENCE[3:],
    }
    monkeypatch.setattr("tests.unit.train.losses.preference_cases.IS_GOOD", IS_GOOD.tolist())
    expected = our_loss(loss, inputs, SETTINGS[loss])
    expected.backward()
    assert got.count == 3
    torch.testing.assert_close(got.mean, expected.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_plain_batch_is_measured() -> None:
    """Minus the log-probability of its targets: how references are found."""
    model = tiny_model()
    engine = LocalEngine(model, PreferenceObjective(PreferenceSection()), OptimizerSection(), "fp32")
    batches = [packed_batch([[row]], length=8) for row in UPPER]
    for batch in batches:
        batch.targets[:, : PROMPT - 1] = -100
    parts = engine.evaluate(batches).parts
    torch.testing.assert_close(-parts, row_log_probabilities(model, UPPER, means=False).detach())


def test_a_rank_without_sequences_evaluates_as_often_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences on three ranks: the third has none, and must not leave the others waiting."""
    builder = SequenceBuilder()
    for row in UPPER[:2]:
        builder.add(Encoded(row, [True] * len(row)))
    samples: Any = SimpleNamespace(sequences=builder.finish(), reference=np.zeros(2, dtype=np.float32))
    shown: list[int] = []

    def evaluate(batches: list[Batch]) -> SimpleNamespace:
        shown.append(len(batches))
        return SimpleNamespace(parts=torch.full((len(batches),), 7.0))

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda found: None)
    for rank, expected in enumerate(([-7.0, 0.0], [0.0, -7.0], [0.0, 0.0])):
        engine: Any = SimpleNamespace(data_rank=rank, data_size=3, evaluate=evaluate)
        measure_references(engine, samples, pad_id=3)
        assert samples.reference.tolist() == expected
    assert shown == [1, 1, 1]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"prompt": f"hello {n}", "chosen": "world", "rejected": f"生抽 {n}, 老抽"} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


STEPS = {"output.log_every": "1", "schedule.total_steps": "4", "schedule.name": "constant"}


@pytest.mark.parametrize(
    ("loss", "adapted"), [("dpo", False), ("dpo", True), ("orpo", False), ("simpo", True)]
)
def test_a_run_on_pairs(
    loss: str, adapted: bool, tiny_model_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    options = {**STEPS, "preference.loss": loss, "optimizer.lr": "0.01"}
    if adapted:
        options["lora.rank"] = "4"
    run(tiny_model_folder, pairs, tmp_path, **options)
    curve = losses(tmp_path)
    assert curve[-1] < curve[0]
    if loss == "dpo":  # the model is its own reference yet, and prefers nothing
        assert curve[0] == pytest.approx(0.6931, abs=1e-3)


def test_a_resumed_run_compares_with_the_first_weights(
    tiny_model_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    options = {**STEPS, "preference.loss": "dpo", "optimizer.lr": "0.01", "output.save_every": "2"}
    run(tiny_model_folder, pairs, tmp_path / "whole", **options)
    for steps in ("2", "4"):
        run(tiny_model_folder, pairs, tmp_path / "halves", **{**options, "schedule.total_steps": steps})
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")


def test_thumbs_of_the_page_train_by_kto(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = VoteFolder(tmp_path / "votes")
    for number in range(6):
        prompt = ({"role": "user", "content": f"hello {number}"},)
        folder.record(
            Vote(
                id=f"{number:032x}",
                label=number % 2 == 0,
                prompt=prompt,
                answer=f"world {number}",
                model="tiny",
            )
        )
    options = {**STEPS, "preference.loss": "kto", "optimizer.lr": "0.01"}
    options["batch.tokens_per_step"] = "8192"  # all in one batch
    run(tiny_model_folder, folder.votes_path, tmp_path / "out", **options)
    curve = losses(tmp_path / "out")
    assert curve[0] == pytest.approx(0.5, abs=1e-3) and curve[-1] < curve[0]


def test_settings_of_another_loss_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"preference\.gamma belongs to the loss simpo"):
        PreferenceSection(loss="dpo", gamma=1.0)
    with pytest.raises(ConfigError, match="undesirable_weight belongs to the loss kto"):
        PreferenceSection(loss="orpo", undesirable_weight=1.0)
    with pytest.raises(ConfigError, match="must be positive"):
        PreferenceSection(beta=0)


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ({"batch": BatchSection(packing=True)}, r"batch\.packing"),
        ({"data": DataSection(train_file="f", loss_on="all")}, r"data\.loss_on"),
        ({"data": DataSection(train_file="f", processes=2)}, r"data\.processes"),
        ({"z_loss": 1.0}, "z_loss"),
    ],
)
def test_what_preferences_do_not_obey_is_refused(section: dict[str, object], name: str) -> None:
    settings = {
        "model": ModelSection(start_from="m"),
        "data": DataSection(train_file="f"),
        "output": OutputSection(folder="o"),
        "preference": PreferenceSection(),
    }
    with pytest.raises(ConfigError, match=name):
        TrainConfig(**{**settings, **section})  # type: ignore[arg-type]


def test_all_of_a_batch_moves_to_another_device() -> None:
    """A reference or a verdict that stayed behind would stop DPO and KTO on every accelerator."""
    plain = vars(packed_batch([[UPPER[0]], [LOWER[0]]], length=8))
    batch = PreferenceBatch(**plain, num_pairs=1, reference=torch.zeros(2), is_good=IS_GOOD[:1])
    moved = batch.to(torch.device("meta"))
    tensors = {name: value for name, value in vars(moved).items() if isinstance(value, Tensor)}
    assert tensors.keys() >= {"ids", "reference", "is_good"}
    assert {value.device.type for value in tensors.values()} == {"meta"}
