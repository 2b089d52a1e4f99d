"""Whatever can be converted can be used as a model as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from telechat import load_model
from telechat.checkpoint import check_folder, resolve_model
from telechat.checkpoint.formats import reference
from telechat.cli.main import main
from telechat.errors import CheckpointError

QUESTION = "hello"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by TELECHAT_CACHE: the compiled kernels are there, too.
    monkeypatch.setattr(reference, "cache_folder", lambda: tmp_path / "cache")


def convert(*words: object) -> None:
    assert main(["checkpoint", "convert", *map(str, words)]) == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ms", ("--to", "mindspore", "--layout", "dp2,mp1,pp2,opt")),
        ("fused", ("--to", "mindspore", "--qkv-concat")),
        ("llama", ("--to", "llama")),
        ("dcp", ("--to", "dcp")),
        ("gguf", ("--to", "gguf")),
    ],
)
def test_any_format_is_a_model(
    name: str, words: tuple[str, ...], tiny_model_folder: Path, tmp_path: Path
) -> None:
    convert(tiny_model_folder, tmp_path / name, *words)
    ours, found = load_model(tiny_model_folder, device="cpu"), load_model(tmp_path / name, device="cpu")
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        assert torch.equal(found(ids), ours(ids))
    report = check_folder(resolve_model(tmp_path / name))
    assert report.is_complete, report.problems


def test_generate_from_a_single_file(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sub").mkdir()
    convert(tiny_model_folder, tmp_path / "sub/model.ckpt", "--to", "mindspore")
    words = ["--input-text", QUESTION, "--max-new-tokens", "8"]
    capsys.readouterr()
    assert main(["generate", str(tiny_model_folder), *words]) == 0
    expected = capsys.readouterr().out
    assert main(["generate", str(tmp_path / "sub/model.ckpt"), *words]) == 1
    assert "--model-config" in capsys.readouterr().err
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tiny_model_folder / name, tmp_path / "sub" / name)
    assert main(["generate", str(tmp_path / "sub/model.ckpt"), *words]) == 0
    assert capsys.readouterr().out == expected


def test_the_reference_follows_the_source(tiny_model_folder: Path, tmp_path: Path) -> None:
    convert(tiny_model_folder, tmp_path / "ms", "--to", "mindspore")
    first = resolve_model(tmp_path / "ms")
    assert resolve_model(tmp_path / "ms") == first
    assert not any(path.suffix in (".ckpt", ".safetensors") for path in first.iterdir())
    raw = json.loads((tmp_path / "ms/config.json").read_text())
    (tmp_path / "ms/config.json").write_text(json.dumps({**raw, "seq_length": 77}))
    assert json.loads((resolve_model(tmp_path / "ms") / "config.json").read_text())["seq_length"] == 77
    shutil.rmtree(tmp_path / "ms/rank_0")
    with pytest.raises(CheckpointError):
        load_model(first, device="cpu")


def test_a_missing_tokenizer_is_the_sources(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error speaks of the file that the user named, not of the folder in the cache that stands for it."""
    file = tmp_path / "alone" / "model.ckpt"
    file.parent.mkdir()
    convert(tiny_model_folder, file, "--to", "mindspore")
    shutil.copy(tiny_model_folder / "config.json", file.parent)
    capsys.readouterr()
    assert main(["generate", str(file), "--input-text", QUESTION]) == 1
    said = capsys.readouterr().err
    assert f"{file} comes without a tokenizer" in said and "also take --tokenizer" in said
    assert "references" not in said
    words = ["--tokenizer", str(tiny_model_folder), "--max-new-tokens", "2"]
    assert main(["generate", str(file), "--input-text", QUESTION, *words]) == 0


def test_a_tokenizer_of_any_name(tiny_model_folder: Path, tmp_path: Path) -> None:
    """A file of another name takes the usual one; what holds no vocabulary is refused."""
    (tmp_path / "words").mkdir()
    named = shutil.copy(tiny_model_folder / "tokenizer.json", tmp_path / "words" / "telechat.json")
    found = reference.reference_folder(tiny_model_folder, tokenizer=Path(named))
    assert (found / "tokenizer.json").read_bytes() == (tiny_model_folder / "tokenizer.json").read_bytes()
    (tmp_path / "bare").mkdir()
    shutil.copy(tiny_model_folder / "tokenizer_config.json", tmp_path / "bare")
    for path in (tmp_path / "bare", tiny_model_folder / "model.safetensors", tmp_path / "none"):
        with pytest.raises(CheckpointError, match="no tokenizer"):
            reference.reference_folder(tiny_model_folder, tokenizer=path)


def test_a_link_to_a_file_of_another_name(tiny_model_folder: Path, tmp_path: Path) -> None:
    """As in Hugging Face's cache, whose files are links to others named by their hash."""
    convert(tiny_model_folder, tmp_path / "made.gguf", "--to", "gguf")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "made.gguf").rename(tmp_path / "blobs/0123abcd")
    (tmp_path / "model.gguf").symlink_to("blobs/0123abcd")
    ours, found = (
        load_model(tiny_model_folder, device="cpu"),
        load_model(tmp_path / "model.gguf", device="cpu"),
    )
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        assert torch.equal(found(ids), ours(ids))
