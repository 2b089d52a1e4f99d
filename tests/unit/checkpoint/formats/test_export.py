"""`telechat export …`: the printed commands are run, against stand-ins that look at what they are given."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.checkpoint.formats.samples import DENSE, KINDS, model_folder, with_tokenizer

from telechat.checkpoint.formats.lazy import same_numbers
from telechat.checkpoint.formats.mindie import MindieSettings, model_fields
from telechat.checkpoint.formats.opening import open_checkpoint
from telechat.checkpoint.mindspore.run_config import model_fields as read_fields
from telechat.cli.main import main
from telechat.errors import CheckpointError
from telechat.layers.rotary import RotaryTables
from telechat.models import TeleChatConfig

# Writes its arguments and folder; fails where a path among the arguments does not exist.
STAND_IN = """#!/bin/sh
for word in "$@"; do
  case "$word" in /*) test -e "$word" || exit 3;; esac
done
printf '%s\\n' "$(basename "$0")" "$@" "in $PWD" >> "$RECORD"
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return with_tokenizer(model_folder(tmp_path / "model", DENSE.replace(vocab_size=4096)))


def export(kind: str, *words: object) -> int:
    return main(["export", kind, *map(str, words)])


def run_printed(commands: str, tmp_path: Path) -> list[str]:
    """Run what was printed with stand-ins on the path; returns what they were given."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("transformers", "vllm", "llama-server", "ollama", "mindieservice_daemon"):
        (tools / name).write_text(STAND_IN)
        (tools / name).chmod(0o755)
    record = tmp_path / "record"
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(record)}
    subprocess.run(["sh", "-e", "-c", commands], check=True, env=environment, cwd=tmp_path)
    return record.read_text().splitlines()


def test_llama(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("llama", model, tmp_path / "out", "--length", "32", "--dtype", "bfloat16") == 0
    given = run_printed(capsys.readouterr().out, tmp_path)
    assert given[:3] == ["transformers", "serve", str(tmp_path / "out")]
    raw = json.loads((tmp_path / "out/config.json").read_text())
    assert (raw["max_position_embeddings"], raw["torch_dtype"]) == (32, "bfloat16")


def test_vllm(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("vllm", model, tmp_path / "My Model", "--tp", "2", "--port", "9000") == 0
    given = run_printed(capsys.readouterr().out, tmp_path)
    assert given[:5] == ["vllm", "serve", str(tmp_path / "My Model"), "--served-model-name", "my-model"]
    assert given[5:-1] == ["--max-model-len", "64", "--tensor-parallel-size", "2", "--port", "9000"]
    assert json.loads((tmp_path / "My Model/config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]
    assert (tmp_path / "My Model/tokenizer.json").is_file()


def test_gguf(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("gguf", model, tmp_path / "out", "--gguf-type", "Q8_0", "--port", "9001") == 0
    given = run_printed(capsys.readouterr().out, tmp_path)
    assert given[:3] == ["llama-server", "--model", str(tmp_path / "out/model-Q8_0.gguf")]
    assert given[3:-1] == ["--ctx-size", "64", "--port", "9001", "--jinja"]


@pytest.mark.parametrize("kind", ["gguf", "ollama", "vllm"])
def test_a_file_where_a_folder_is_meant(
    kind: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(kind, model, tmp_path / "out.gguf") == 2
    assert "OUT is a folder here, and out.gguf is the name of a file" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_ollama(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("ollama", model, tmp_path / "out", "--length", "48", "--gguf-type", "F16") == 0
    given = run_printed(capsys.readouterr().out, tmp_path)
    assert given[:5] == ["ollama", "create", "out", "-f", str(tmp_path / "out/Modelfile")]
    assert given[6:9] == ["ollama", "run", "out"]
    assert "num_ctx 48" in (tmp_path / "out/Modelfile").read_text("utf-8")


@pytest.mark.parametrize(("kind", "tp"), [("dense", 2), ("mixture", 2), ("dense", 1)])
def test_mindie(kind: str, tp: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = model_folder(tmp_path / "model", KINDS[kind])
    out = tmp_path / "out"
    words = ("--tp", tp, "--max-seq-len", "48", "--port", "2025", "--qkv-concat")
    assert export("mindie", source, out, *words) == 0
    given = run_printed(capsys.readouterr().out, tmp_path)
    assert given == ["mindieservice_daemon", f"in {out}"]
    service = json.loads((out / "conf/config.json").read_text())
    assert service["ServerConfig"]["port"] == 2025
    assert service["BackendConfig"]["npuDeviceIds"] == [list(range(tp))]
    [deployed] = service["BackendConfig"]["ModelDeployConfig"]["ModelConfig"]
    assert (deployed["modelWeightPath"], deployed["worldSize"]) == (str(out), tp)
    fields = json.loads((out / "config.json").read_text())
    assert (fields["seq_length"], fields["qkv_concat"], fields["num_layers"]) == (48, True, 2)
    # Its own run file opens it again.
    for config in (out / "predict_telechat.yaml", None):
        found = open_checkpoint(out, config=config)
        for name, tensor in open_checkpoint(source).tensors.items():
            assert same_numbers(found.tensors[name], tensor), name


@pytest.mark.parametrize("scheme", ["telechat", "none", "pi", "ntk-static", "mindformers-dynamic"])
@pytest.mark.parametrize("base_length", [64, 32])
@pytest.mark.parametrize("length", [48, 200])
def test_mindie_turns_as_the_model_does(scheme: Any, base_length: int, length: int) -> None:
    rope = replace(DENSE.rope, scheme=scheme, factor=3.0, base_length=base_length)
    config = DENSE.replace(rope=rope)
    settings = MindieSettings(max_seq_len=length)
    if (scheme, base_length, length) == ("telechat", 32, 200):
        with pytest.raises(CheckpointError, match="stretched from 32 tokens on"):
            model_fields(config, settings, length, "float32")
        return
    raw = {"model": {"model_config": model_fields(config, settings, length, "float32")}}
    found = TeleChatConfig.from_hf(read_fields(raw, "config.json"))
    positions = torch.arange(40)
    for call in (40, length):
        expected = RotaryTables(replace(rope, table_dtype="float32"), 8).rows(positions, call)
        for ours, theirs in zip(expected, RotaryTables(found.rope, 8).rows(positions, call), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5), call


def test_mindie_dtype(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    assert export("mindie", source, tmp_path / "out", "--dtype", "float16") == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["compute_dtype"] == "float16"
    found = open_checkpoint(tmp_path / "out", config=tmp_path / "out/predict_telechat.yaml")
    assert "float16" in str(found.dtype)


@pytest.mark.parametrize("kind", ["llama", "vllm", "gguf", "ollama"])
def test_length_and_dtype(kind: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--gguf-type", "BF16") if kind in ("gguf", "ollama") else ("--dtype", "bfloat16")
    assert export(kind, model, tmp_path / "out", "--length", "40", *words) == 0
    printed = capsys.readouterr().out
    assert kind in ("llama", "ollama") or " 40 " in printed
    found = open_checkpoint(tmp_path / "out")
    assert "bfloat16" in str(found.dtype)
    assert found.runs_as is not None and found.runs_as.training_seqlen == 40


@pytest.mark.parametrize("kind", ["llama", "vllm", "mindie"])
def test_sources_that_need_more(kind: str, tmp_path: Path) -> None:
    """Slices whose config and strategy are elsewhere."""
    source = model_folder(tmp_path / "model")
    words = ["--to", "mindspore", "--layout", "dp2,mp2,opt"]
    assert main(["checkpoint", "convert", str(source), str(tmp_path / "ms"), *words]) == 0
    (tmp_path / "ms/strategy").rename(tmp_path / "moved")
    (tmp_path / "ms/config.json").unlink()
    assert export(kind, tmp_path / "ms", tmp_path / "out") == 1
    more = ("--model-config", source / "config.json", "--strategy", tmp_path / "moved")
    assert export(kind, tmp_path / "ms", tmp_path / "out", *more) == 0


@pytest.mark.parametrize(("kind", "name"), [("gguf", "model-F32.gguf"), ("llama", "")])
def test_what_describes_itself_takes_no_config(
    kind: str, name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--gguf-type", "F32") if kind == "gguf" else ("--dtype", "float32")
    assert export(kind, model, tmp_path / "out", *words) == 0
    source = tmp_path / "out" / name
    config = ("--model-config", str(model / "config.json"))
    assert main(["checkpoint", "convert", str(source), str(tmp_path / "hf"), "--to", "hf", *config]) != 0
    said = capsys.readouterr().err
    assert "describes its model itself; config.json would say nothing" in said
    assert "Leave --model-config" in said
    assert main(["checkpoint", "verify", str(model), str(source), *config]) == 0  # it is the other one's
