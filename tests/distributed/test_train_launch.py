"""`telechat launch -- train`: logs, the loss on the console, the end of all when one ends, and restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.distributed.train_cases import ROOT

from telechat.train.run import main

ROWS = [
    {"messages": [{"role": "user", "content": f"{n} plus 1?"}, {"role": "assistant", "content": f"{n + 1}"}]}
    for n in range(40)
]


def write_recipe(folder: Path, model: Path, *, steps: int) -> Path:
    """A run of a tiny model; few steps, written as often."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{start_from: '{model}'}}\n"
        f"data: {{train_file: '{folder}/rows.jsonl', max_length: 256}}\n"
        f"output: {{folder: '{folder}/run', save_every: 5, log_every: 1, dtype: float32}}\n"
        "batch: {tokens_per_step: 2048, micro_batches: 2}\n"
        f"schedule: {{total_steps: {steps}}}\n"
        "precision: fp32\n"
        "device: cpu\n",
        encoding="utf-8",
    )
    return recipe


def start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "telechat", "launch", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
    )


def pids_of(log_dir: Path) -> list[int]:
    """The processes of a launch, by their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            environment = (path / "environ").read_bytes()
        except OSError:
            continue
        if b"telechat.cli.launch_worker" in words and f"LAUNCH_TEST={log_dir}".encode() in environment:
            found.append(int(path.name))
    return found


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_killed_process_is_started_again_and_the_run_resumes(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, logs = write_recipe(tmp_path, tiny_model_folder, steps=30), tmp_path / "logs"
    monkeypatch.setenv("LAUNCH_TEST", str(logs))
    process = start(
        *("--nproc-per-node", "2", "--max-restarts", "1", "--log-dir", str(logs)),
        *("--", "train", "--config", str(recipe), "--parallel.tp", "2"),
    )
    killed = threading.Event()

    def kill() -> None:
        """End one process for good when the first checkpoint is there."""
        while process.poll() is None and not killed.is_set():
            if any((tmp_path / "run/checkpoints").glob("step-*[0-9]")):
                os.kill(max(pids_of(logs)), signal.SIGKILL)
                killed.set()
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    out, _ = process.communicate(timeout=280)
    thread.join()
    assert killed.is_set() and process.returncode == 0, out
    # The first process says the loss, and it is on the console; each has a log, also of the first attempt.
    assert "30/30" in out and "loss" in out, out
    assert {path.name for path in logs.glob("*.log")} == {
        *("worker_0.log", "worker_1.log", "worker_0.attempt0.log", "worker_1.attempt0.log")
    }
    assert len(losses(tmp_path / "run")) == 30
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    assert (tmp_path / "run/model/model.safetensors").exists()


def test_one_that_ends_ends_the_others_and_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = tmp_path / "logs"
    monkeypatch.setenv("LAUNCH_TEST", str(logs))
    process = start(
        *("--nproc-per-node", "2", "--log-dir", str(logs)),
        *("--", "train", "--config", str(tmp_path / "missing.yaml")),
    )
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 1
    # What the process itself said, where its log is, and how it ended.
    assert "missing.yaml" in out and "worker_" in out and "exit code 1" in out
    assert not pids_of(logs)


def test_ctrl_c_ends_all(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, logs = write_recipe(tmp_path, tiny_model_folder, steps=100_000), tmp_path / "logs"
    monkeypatch.setenv("LAUNCH_TEST", str(logs))
    process = start("--log-dir", str(logs), "--", "train", "--config", str(recipe))
    while process.poll() is None and not (tmp_path / "run/metrics.jsonl").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out
    assert not pids_of(logs)


def test_a_whole_run_on_judged_answers(tiny_model_folder: Path, tmp_path: Path) -> None:
    """References are measured by both processes, each its share, and both are shown all of them."""
    rows = [
        {"prompt": f"hello {n}", "completion": "world" if n % 2 else f"{n}, {n}", "label": bool(n % 2)}
        for n in range(9)
    ]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{start_from: '{tiny_model_folder}'}}\n"
        f"data: {{train_file: '{tmp_path}/votes.jsonl', max_length: 256}}\n"
        f"output: {{folder: '{tmp_path}/alone', log_every: 1}}\n"
        "batch: {tokens_per_step: 3000, micro_batches: 2}\n"
        "schedule: {total_steps: 4, name: constant}\n"
        "optimizer: {lr: 0.01, eps: 1.0e-4}\n"
        "preference: {loss: kto}\n"
        "lora: {rank: 4}\n"
        "precision: fp32\n"
        "device: cpu\n"
    )
    process = start(
        *("--nproc-per-node", "2", "--log-dir", str(tmp_path / "logs")),
        *("--", "train", "--config", str(recipe), "--output.folder", str(tmp_path / "both")),
    )
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0, out
    main(str(recipe))
    alone, both = losses(tmp_path / "alone"), losses(tmp_path / "both")
    assert len(alone) == 4 and alone[0] == pytest.approx(0.5, abs=1e-3) and alone[-1] < alone[0]
    assert both == pytest.approx(alone, rel=1e-4)
