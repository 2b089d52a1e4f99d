"""`telechat checkpoint show`, `checkpoint verify` and `template diff`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.unit.checkpoint.formats.samples import DENSE, KINDS, model_folder, with_tokenizer

from telechat.checkpoint.hub import demo_folder
from telechat.cli.main import main


def run(*words: object) -> int:
    return main([str(word) for word in words])


def convert(*words: object) -> None:
    assert run("checkpoint", "convert", *words) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--to", "hf"), ("official layout", "2 x float32", "transformer.h.*.mlp.local_experts.*.gate_proj")),
        (
            ("--to", "mindspore", "--layout", "mp2"),
            ("MindSpore, slices of 2 ranks", "kv_concat layout", "2 x Float32"),
        ),
        (
            ("--to", "mindspore", "--qkv-concat"),
            ("qkv_concat layout", "model.layers.*.attention.w_qkv.weight"),
        ),
        (("--to", "dcp"), ("training checkpoint", "model.lm_head.weight")),
    ],
)
def test_show(
    words: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = model_folder(tmp_path / "model", KINDS["mixture"])
    convert(source, tmp_path / "out", *words)
    capsys.readouterr()
    assert run("checkpoint", "show", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    for text in (*expected, "2 layers, hidden 32, 4 heads (2 for keys and values)", "4 experts (2 a token)"):
        assert text in shown
    assert len(shown.splitlines()) < 30


def test_an_official_folder_is_one_whatever_else_lies_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for the verbs that load a model: weights of a training beside it are not shown in its stead."""
    source = model_folder(tmp_path / "model")
    (source / ".metadata").write_bytes(b"of a training")
    (source / "rank_0").mkdir()
    (source / "rank_0" / "old.ckpt").write_bytes(b"old")
    assert run("checkpoint", "show", source) == 0
    assert "official layout" in capsys.readouterr().out


def test_show_says_that_a_folder_is_quantised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = model_folder(tmp_path / "model")
    raw = json.loads((source / "config.json").read_text("utf-8"))
    raw["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (source / "config.json").write_text(json.dumps(raw), "utf-8")
    assert run("checkpoint", "show", source) == 0
    assert 'quantised: gptq "bits": 4, "group_size": 128' in capsys.readouterr().out


def test_archives_are_unpacked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(model_folder(tmp_path / "model"), tmp_path / "ms", "--to", "mindspore")
    archive = Path(shutil.make_archive(str(tmp_path / "Telechat_7B"), "zip", tmp_path / "ms"))
    assert run("checkpoint", "show", archive) == 1
    assert "Telechat_7B.zip is no checkpoint. Unpack it first." in capsys.readouterr().err
    shutil.unpack_archive(archive, tmp_path / "Telechat_7B")
    assert run("checkpoint", "show", tmp_path / "Telechat_7B") == 0
    assert "MindSpore" in capsys.readouterr().out


def test_show_a_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert("demo", tmp_path / "demo.gguf", "--to", "gguf", "--gguf-type", "Q8_0")
    capsys.readouterr()
    assert run("checkpoint", "show", tmp_path / "demo.gguf") == 0
    shown = capsys.readouterr().out
    assert "GGUF" in shown and "6 layers, hidden 256" in shown and "tokenizer inside" in shown
    assert "6 x Q8_0" in shown
    shutil.copy(tmp_path / "demo.gguf", tmp_path / "other.gguf")
    assert run("checkpoint", "show", tmp_path) == 1
    assert "holds 2 GGUF files. Name one of them." in capsys.readouterr().err


@pytest.mark.parametrize("to", ["llama", "mindspore", "dcp", "gguf"])
def test_verify_a_conversion(to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = with_tokenizer(model_folder(tmp_path / "model", DENSE.replace(vocab_size=4096)))
    convert(source, tmp_path / "out", "--to", to)
    assert run("checkpoint", "verify", source, tmp_path / "out") == 0
    assert "the same: 23 of 23 tensors equal" in capsys.readouterr().out
    certificate = json.loads((tmp_path / "out/certificate.json").read_text())
    assert certificate["is_same"] is True
    assert certificate["first"]["sha256"] == certificate["second"]["sha256"]
    assert certificate["max_difference"] == 0 and certificate["max_logit_difference"] < 0.05
    assert certificate["num_layers"] == 2 and certificate["versions"]["torch"]


def test_verify_rounding_and_options(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    convert(source, tmp_path / "out.ckpt", "--to", "mindspore", "--dtype", "float16")
    words = ("--layers", "1", "--output", tmp_path / "c.json", "--model-config", source / "config.json")
    assert run("checkpoint", "verify", source, tmp_path / "out.ckpt", *words) == 0
    certificate = json.loads((tmp_path / "c.json").read_text())
    assert certificate["num_layers"] == 1
    assert certificate["num_rounded"] == 23 and 0 < certificate["max_difference"] < 0.001


def test_verify_finds_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = model_folder(tmp_path / "model")
    convert(source, tmp_path / "out", "--to", "hf")
    path = tmp_path / "out/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert run("checkpoint", "verify", source, tmp_path / "out") == 1
    out = capsys.readouterr().out
    assert "DIFFERENT: 22 of 23 tensors equal" in out and "word_embeddings.weight" in out


def test_verify_finds_another_rotary_base(tmp_path: Path) -> None:
    """Equal tensors are not enough: what a Llama's config says is computed, too."""
    source = model_folder(tmp_path / "model")
    convert(source, tmp_path / "out", "--to", "llama")
    raw = json.loads((tmp_path / "out/config.json").read_text())
    raw["rope_parameters"]["rope_theta"] = 3.0
    (tmp_path / "out/config.json").write_text(json.dumps(raw))
    assert run("checkpoint", "verify", source, tmp_path / "out") == 1


def test_strategy_is_for_the_sliced_side(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    convert(source, tmp_path / "out", "--to", "mindspore", "--layout", "dp2,mp2,opt")
    (tmp_path / "out/strategy").rename(tmp_path / "moved")
    assert run("checkpoint", "verify", source, tmp_path / "out", "--strategy", tmp_path / "moved") == 0


def test_template_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("template", "diff", "demo", "demo") == 0
    assert "the same tokens in 4 conversations" in capsys.readouterr().out
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, tmp_path / name)
    raw = json.loads((tmp_path / "tokenizer_config.json").read_text())
    raw["chat_format"] = "telechat1"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(raw))
    assert run("template", "diff", "demo", tmp_path) == 1
    out = capsys.readouterr().out
    assert "different with one question, at token 0" in out
    assert "'<_system>'" in out and "'<_user>'" in out
