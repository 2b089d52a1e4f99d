"""`--config`, `--tokenizer` and `--strategy`: models that are no official folders, used as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from telechat.checkpoint.formats import reference
from telechat.cli.main import main
from telechat.cli.model_source import model_of
from telechat.cli.parser import CommandParser

YAML = """
run_mode: predict
load_checkpoint: '{checkpoint}'
use_parallel: False
context: {{mode: 0}}
model:
  model_config:
    vocab_size: 300
    hidden_size: 32
    num_layers: 2
    num_heads: 2
    n_kv_heads: 1
    intermediate_size: 48
    seq_length: 256
    max_position_embedding: 1024
    rms_norm_eps: 1.0e-5
    bos_token_id: 1
    eos_token_id: 2
    pad_token_id: 3
    block_size: 32
    num_blocks: 20
    max_decode_length: 64
    do_sample: False
    repetition_penalty: 1
processor:
  tokenizer: {{vocab_file: '{vocabulary}'}}
"""
WORDS = ["--input-text", "hello world", "--max-new-tokens", "6"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by TELECHAT_CACHE: the compiled kernels are there, too.
    monkeypatch.setattr(reference, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def parts(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A folder with a `.ckpt`, and a tokenizer and a run file elsewhere."""
    for name in ("weights", "words"):
        (tmp_path / name).mkdir()
    checkpoint = tmp_path / "weights/telechat.ckpt"
    assert main(["checkpoint", "convert", str(tiny_model_folder), str(checkpoint), "--to", "mindspore"]) == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_folder / name, tmp_path / "words" / name)
    text = YAML.format(checkpoint=checkpoint, vocabulary=tmp_path / "words/tokenizer.json")
    (tmp_path / "predict.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["generate", *map(str, words), *WORDS]) == 0
    return capsys.readouterr().out


def test_generate_by_a_run_file(
    parts: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = answer(capsys, tiny_model_folder)
    # The run file names checkpoint and tokenizer; its tables are exact, which six tokens do not show.
    assert answer(capsys, "--config", parts / "predict.yaml") == expected
    config = ("--config", tiny_model_folder / "config.json", "--tokenizer", parts / "words")
    assert answer(capsys, parts / "weights/telechat.ckpt", *config) == expected


def test_sizes_of_the_run_file(parts: Path) -> None:
    from telechat.cli.generate import add_arguments

    parser = CommandParser("telechat generate", summary="x", examples=())
    add_arguments(parser)
    words = ["--input-text", "x", "--config", str(parts / "predict.yaml")]
    args = parser.parse(words)
    folder = Path(model_of(args))
    assert (args.max_model_len, args.block_size, args.num_blocks) == (256, 32, 20)
    assert json.loads((folder / "generation_config.json").read_text())["max_length"] == 64
    args = parser.parse([*words, "--block-size", "16", "--max-model-len", "99"])
    model_of(args)
    assert (args.max_model_len, args.block_size, args.num_blocks) == (99, 16, 20)


def test_tokenizer_of_its_own(
    parts: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An official folder, too, may be given another tokenizer."""
    folder = parts / "bare"
    shutil.copytree(tiny_model_folder, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert main(["generate", str(folder), *WORDS]) == 1
    file = parts / "words/tokenizer.json"
    assert answer(capsys, folder, "--tokenizer", file) == answer(capsys, tiny_model_folder)


def test_chat_too(parts: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "hello world", "--max-new-tokens", "6"]
    capsys.readouterr()
    assert main(["chat", str(tiny_model_folder), *words]) == 0
    expected = capsys.readouterr().out
    assert main(["chat", "--config", str(parts / "predict.yaml"), *words]) == 0
    assert capsys.readouterr().out == expected


def test_strategy_of_slices(parts: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sliced = parts / "sliced"
    words = ["--to", "mindspore", "--layout", "dp2,pp2,opt"]
    assert main(["checkpoint", "convert", str(tiny_model_folder), str(sliced), *words]) == 0
    (sliced / "strategy").rename(parts / "moved")
    assert main(["generate", str(sliced), *WORDS]) == 1
    found = answer(capsys, sliced, "--src_strategy_path_or_dir", parts / "moved")
    assert found == answer(capsys, tiny_model_folder)


def test_refusals(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (parts / "recipe.yaml").write_text("output: {folder: x}\n")
    for words, message in (
        (("--config", parts / "recipe.yaml"), "no MindFormers run file"),
        ((parts / "weights", "--config", parts / "missing.yaml"), "Cannot read"),
        (
            (parts / "weights", "--config", parts / "predict.yaml", "--tokenizer", parts / "no"),
            "no tokenizer",
        ),
    ):
        assert main(["generate", *map(str, words), *WORDS]) == 1
        assert message in capsys.readouterr().err
