"""`telechat serve --engine vllm`, with a stand-in for vLLM that writes down what it is given."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from telechat.checkpoint import hub
from telechat.cli.main import main

STAND_IN = """#!/bin/sh
printf '%s\\n' "$@" > "$RECORD"
printf %s "$VLLM_API_KEY" > "$RECORD.key"
exit 7
"""


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "vllm").write_text(STAND_IN)
    (tools / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "record"


def serve(*words: object) -> int:
    return main(["serve", *map(str, words), "--engine", "vllm"])


def test_options_go_over(record: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve(tiny_model_folder) == 7
    first = record.read_text().splitlines()
    raw = json.loads((Path(first[1]) / "config.json").read_text())
    assert raw["architectures"] == ["LlamaForCausalLM"]
    assert first[0] == "serve" and first[2:4] == ["--served-model-name", tiny_model_folder.name]
    assert first[4:] == ["--host", "127.0.0.1", "--port", "8070"]

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    words = ("--port", 9000, "--served-model-name", "me", "--max-model-len", 512, "--tp", 2)
    assert serve(tiny_model_folder, *words, "--dtype", "float16", "--max-batch-size", 3) == 7
    given = " ".join(record.read_text().splitlines())
    for part in (
        "--port 9000", "--served-model-name me", "--max-model-len 512", "--tensor-parallel-size 2",
        "--dtype float16", "--max-num-seqs 3", "--distributed-executor-backend ray",
    ):  # fmt: skip
        assert part in given


def test_the_folder_is_made_once(record: Path, tiny_model_folder: Path) -> None:
    folders = set()
    for _ in range(2):
        assert serve(tiny_model_folder) == 7
        folders.add(record.read_text().splitlines()[1])
    [folder] = folders
    assert (Path(folder) / "tokenizer.json").is_file()


def test_refusals(
    record: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serve(tiny_model_folder, "--speculate", "prompt-lookup") == 2
    assert "--speculate has no meaning with --engine vllm" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert serve(tiny_model_folder) == 2
    assert "pip install vllm" in capsys.readouterr().err
    assert not record.exists()


def test_the_key_goes_over_by_environment(
    record: Path,
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A command line can be read by every user; a public address is not served without a key."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TELECHAT_API_KEY", raising=False)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    kept = record.with_suffix(".key")
    assert serve(tiny_model_folder) == 7 and kept.read_text() == ""
    assert serve(tiny_model_folder, "--api-key", "secret") == 7 and kept.read_text() == "secret"
    assert "secret" not in record.read_text()
    assert serve(tiny_model_folder, "--host", "0.0.0.0") == 7
    assert kept.read_text() in capsys.readouterr().err and kept.read_text().startswith("sk-")
    assert serve(tiny_model_folder, "--host", "0.0.0.0", "--allow-anonymous") == 7
    assert kept.read_text() == ""
    monkeypatch.setenv("TELECHAT_API_KEY", "mine")
    assert serve(tiny_model_folder) == 7 and kept.read_text() == "mine"
