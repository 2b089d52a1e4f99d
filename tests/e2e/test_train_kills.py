"""A training run that is killed ten times at random moments ends with the weights of one that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

KILLS = 10


def train(model: str, rows: str, folder: str) -> None:
    """One start of the command, as the leader of a process group of its own. Runs in a child."""
    os.setsid()
    torch.set_num_threads(1)
    from telechat.train.run import main

    settings = {
        "model.start_from": model,
        "data.train_file": rows,
        "data.max_length": "256",
        "output.folder": folder,
        "output.dtype": "float32",
        "output.save_every": "2",
        "batch.tokens_per_step": "512",
        "batch.micro_batches": "2",
        "schedule.total_steps": "30",
        "precision": "fp32",
        "device": "cpu",
    }
    main(None, settings)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = ["hello", "world", "telechat", "bamboo", "生抽", "老抽", "one", "two"]
    pairs = [(a, b) for a in texts for b in texts]
    path.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]})
            + "\n"
            for a, b in pairs
        ),
        encoding="utf-8",
    )
    return path


@pytest.mark.timeout(1800)  # many starts; a busy machine makes each of them slow
def test_killed_runs_end_bitwise_as_one_that_was_left_alone(
    tiny_model_folder: Path, rows: Path, tmp_path: Path
) -> None:
    # A server that has imported everything forks each run, so a start takes no seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["telechat.train.run", __name__])

    def start(folder: Path) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=train, args=(str(tiny_model_folder), str(rows), str(folder)))
        process.start()
        return process

    start(tmp_path / "warm-up").join()
    began = time.monotonic()
    whole = start(tmp_path / "whole")
    whole.join()
    duration = time.monotonic() - began
    assert whole.exitcode == 0

    seed = random.SystemRandom().randrange(10**6)
    print(f"moments of the kills: seed {seed}, a whole run takes {duration:.1f} s")
    moments = random.Random(seed)
    folders, kills = [tmp_path / "killed-0"], 0
    while True:
        process = start(folders[-1])
        process.join(timeout=moments.uniform(0, duration / 3) if kills < KILLS else None)
        if process.is_alive() and process.pid is not None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # not yet the leader of its group
                process.kill()
            process.join()
            kills += 1
        elif process.exitcode != 0:
            pytest.fail(f"the run in {folders[-1]} ended with {process.exitcode} after {kills} kills")
        elif kills < KILLS:
            folders.append(tmp_path / f"killed-{len(folders)}")
        else:
            break
    expected = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    for folder in folders:
        got = load_file(folder / "model" / "model.safetensors")
        assert all(torch.equal(got[name], tensor) for name, tensor in expected.items()), (folder, seed)
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == [10, 20, 30]
