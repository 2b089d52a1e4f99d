"""Every field of the recipe's section `data` reaches the samples of a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from telechat.checkpoint import resolve_model
from telechat.cli.main import main
from telechat.config import load_config
from telechat.data.samples import SampleSet
from telechat.errors import ConfigError
from telechat.tokenizer import Tokenizer, load_tokenizer
from telechat.train.config import TrainConfig
from telechat.train.run import open_feed


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(resolve_model("demo"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"input": "<_user>q1<_bot>1111<_user>q2", "output": "2222"}, {"input": "q3", "output": "3333"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def samples_of(rows: Path, tokenizer: Tokenizer, **settings: object) -> SampleSet:
    overrides = {"model.start_from": "demo", "output.folder": "unused", "data.train_file": str(rows)}
    overrides |= {key.replace("__", "."): str(value) for key, value in settings.items()}
    config = load_config(TrainConfig, None, overrides)
    engine: Any = SimpleNamespace(data_rank=0, data_size=1)
    samples = open_feed(config, config.data.train_file, tokenizer, engine).samples
    assert isinstance(samples, SampleSet)
    return samples


def test_max_length_and_mode(rows: Path, tokenizer: Tokenizer) -> None:
    assert samples_of(rows, tokenizer).accounting.max_length == 2048
    short = samples_of(rows, tokenizer, data__max_length=50)
    assert short.accounting.rows_dropped == {"longer than 50 tokens": 1}
    assert set(samples_of(rows, tokenizer, data__max_length=64, data__mode="official").lengths) == {64}


def test_loss_on(rows: Path, tokenizer: Tokenizer) -> None:
    counts = [
        samples_of(rows, tokenizer, data__loss_on=loss_on).accounting.tokens_trained
        for loss_on in ("answers", "turns", "all")
    ]
    assert counts == sorted(set(counts))


def test_on_bad_row(rows: Path, tokenizer: Tokenizer) -> None:
    rows.write_text(rows.read_text() + "{}\n")
    with pytest.raises(ConfigError, match="line 3"):
        samples_of(rows, tokenizer)
    assert samples_of(rows, tokenizer, data__on_bad_row="skip").accounting.rows_used == 2


def test_cache(rows: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    samples_of(rows, tokenizer, data__cache=tmp_path / "kept")
    assert list((tmp_path / "kept").glob("*/ids.npy"))


def test_processes(rows: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def pool(processes: int, **others: Any) -> None:
        asked.append(processes)
        raise ConfigError("no pool here")

    monkeypatch.setattr("telechat.data.encoding_pool.ProcessPoolExecutor", pool)
    samples_of(rows, tokenizer)
    with pytest.raises(ConfigError, match="no pool here"):
        samples_of(rows, tokenizer, data__processes=3)
    assert asked == [3]
    with pytest.raises(ConfigError, match=r"data\.processes 0"):
        samples_of(rows, tokenizer, data__processes=0)


def test_official_settings(rows: Path, tokenizer: Tokenizer) -> None:
    official = {"data__mode": "official", "data__max_length": 64}
    five = samples_of(rows, tokenizer, **official, data__official__num_samples=5)
    assert len(five) == 5
    two = samples_of(rows, tokenizer, **official, data__official__num_workers=2)
    assert len(two) == 2 != len(samples_of(rows, tokenizer, **official))
    unmasked = samples_of(rows, tokenizer, **official, data__official__with_loss_mask="false")
    assert unmasked.sequences.learnt.all()
    with pytest.raises(ConfigError, match="num_workers 0"):
        samples_of(rows, tokenizer, data__official__num_workers=0)
    rows.write_text('{"text": "天地玄黄"}\n{"text": "宇宙洪荒"}\n')
    grouped = samples_of(rows, tokenizer, **official, data__official__group_texts="true")
    assert len(grouped) == 1


@pytest.mark.parametrize(("word", "expected"), [("skip", "missing.jsonl"), ("stop", "--on-bad-row skip")])
def test_on_bad_row_is_a_flag_of_train(
    rows: Path,
    tmp_path: Path,
    word: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With `skip` the run comes as far as the file for evaluation, which is not there."""
    rows.write_text(rows.read_text() + "{}\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{start_from: {resolve_model('demo')}}}\noutput: {{folder: {tmp_path / 'run'}}}\n"
        f"data: {{train_file: {rows}, max_length: 64}}\nevaluation: {{file: {tmp_path / 'missing.jsonl'}}}\n"
    )
    assert main(["train", "--config", str(recipe), "--on-bad-row", word]) == 1
    assert expected in capsys.readouterr().err
