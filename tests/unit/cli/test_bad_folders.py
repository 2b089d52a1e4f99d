"""Model folders that are not sound: `telechat chat` says what is wrong in one line, and ends with 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from telechat.cli.main import main


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")

    return edit


def break_json(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def grow_tokenizer(folder: Path) -> None:
    from telechat.tokenizer.train import train_tokenizer

    train_tokenizer([chr(0x4E00 + index) * 2 for index in range(200)], vocab_size=400, out_folder=folder)


def drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (truncate, "model.safetensors"),
        (garble, "model.safetensors"),
        (drop_weights, "no weights"),
        (edit_config(hidden_size=-4), "-4"),
        (edit_config(n_head=3), "3"),
        (edit_config(hidden_size=64), "64"),
        (edit_config(model_type="llama", architectures=["LlamaForCausalLM"]), "Llama"),
        (break_json, "config.json"),
        (grow_tokenizer, "400"),
        (drop_tokenizer, "tokenizer"),
    ],
)
def test_one_line_and_one(
    damage: Callable[[Path], None],
    part: str,
    tiny_model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    damage(folder)
    assert main(["chat", str(folder), "--prompt", "hello"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert part in shown.err


def test_no_such_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "no-such-folder", "--prompt", "hello"]) == 2
    assert "no-such-folder" in capsys.readouterr().err


def test_a_device_that_is_not_there(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(tiny_model_folder), "--prompt", "hello", "--device", "nonsense"]) == 1
    assert "'nonsense'" in capsys.readouterr().err


def test_meta_is_no_device_to_compute_on(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(tiny_model_folder), "--prompt", "hello", "--device", "meta"]) == 2
    assert "meta is no device" in capsys.readouterr().err


def test_attention_that_cannot_run(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chat", str(tiny_model_folder), "--prompt", "hello", "--device", "cpu", "--attention", "flash"]
    assert main(words) == 1
    assert "flash" in capsys.readouterr().err
