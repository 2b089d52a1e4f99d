"""Recipes of documented runs train on tiny models with the axes of their layouts at two."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.recipe_runs import ROOT

from telechat.checkpoint import load_model, read_config
from telechat.train.results import ADAPTER_FOLDER

# One of each kind; the program runs all of them. The value: processes of the scaled layout.
KINDS = {
    "sft-single-node": 2,
    "telechat2-lora": 2,
    "telechat2-pretrain": 2,
    "mindformers-7b-256k": 4,
    "mindformers-35b": 4,
    "mindformers-lora-115b": 4,
    "mindformers-39b-a12b": 8,  # ep, tp and pp; the program's own default adds dp
}
STEPS = 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """All runs from one start of Python: the folder of their results, and what each found."""
    folder = tmp_path_factory.mktemp("recipes")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    words = ["--steps", str(STEPS), "--processes", "8", "--folder", str(folder), *KINDS]
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.recipe_runs", *words],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return folder, {row["recipe"]: row for row in found}


@pytest.mark.parametrize("name", KINDS)
def test_a_recipe_runs_scaled_down(name: str, runs: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, found = runs
    losses = found[name]["losses"]
    assert found[name]["processes"] == KINDS[name]
    assert len(losses) == STEPS and all(map(math.isfinite, losses))
    assert losses[-1] < losses[0], losses
    if "lora" in name:
        assert (folder / name / ADAPTER_FOLDER / "adapter_model.safetensors").is_file()
    else:
        assert load_model(folder / name / "model").config.vocab_size == 300


def test_a_longer_model_tells_inference_its_length(runs: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    config = read_config(runs[0] / "mindformers-7b-256k" / "model")
    assert config.training_seqlen == config.seq_length == 512  # twice what the tiny model was trained for
    assert config.rope.base == 4e7 and config.rope.scheme == "ntk-static"
