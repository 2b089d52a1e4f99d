"""The folder check of `telechat doctor` finds every problem and loads nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.unit.checkpoint.folders import TINY, random_model, tensors_of, write_folder, write_safetensors

from telechat.checkpoint import check_folder
from telechat.models import count_parameters


def complete(folder: Path) -> Path:
    write_folder(folder, random_model())
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_complete_folder(tmp_path: Path) -> None:
    report = check_folder(complete(tmp_path))
    assert report.is_complete
    assert report.config == TINY
    assert report.num_parameters == count_parameters(TINY)
    assert report.dtypes == {"float32": len(tensors_of(random_model()))}
    assert report.weight_files == ("model.safetensors",)
    assert report.weight_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert report.tokenizer_files == ("tokenizer.json",)


def test_every_problem_is_listed(tmp_path: Path) -> None:
    complete(tmp_path)
    tensors = tensors_of(random_model())
    tensors["transformer.ln_f.weight"] = torch.ones(5)
    write_safetensors(tmp_path, tensors)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "generation_config.json").write_text("{")
    problems = "\n".join(check_folder(tmp_path).problems)
    assert "transformer.ln_f.weight has shape [5]" in problems
    assert "no tokenizer" in problems
    assert "generation_config.json" in problems


def test_nothing_there(tmp_path: Path) -> None:
    report = check_folder(tmp_path)
    assert not report.is_complete
    assert report.config is None
    assert len(report.problems) == 3
    assert not any("\n" in problem for problem in report.problems)
