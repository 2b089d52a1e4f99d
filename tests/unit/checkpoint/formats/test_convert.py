"""`telechat checkpoint convert`: every format, every option, every refusal."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.checkpoint.formats.samples import DENSE, KINDS, model_folder, with_tokenizer

from telechat.checkpoint.formats import dcp_writing
from telechat.checkpoint.formats.convert import convert as write
from telechat.checkpoint.formats.file_tensor import FileTensor
from telechat.checkpoint.formats.lazy import same_numbers
from telechat.checkpoint.formats.opening import open_checkpoint
from telechat.checkpoint.formats.table import Checkpoint
from telechat.checkpoint.mindspore.container import has_crc, read_values
from telechat.cli.main import main


def convert(*words: object) -> int:
    return main(["checkpoint", "convert", *map(str, words)])


def assert_equal(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.config == expected.config
    assert list(found.tensors) == list(expected.tensors)
    for name, tensor in expected.tensors.items():
        assert same_numbers(found.tensors[name], tensor), name


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return with_tokenizer(model_folder(tmp_path / "model", DENSE.replace(vocab_size=4096)))


@pytest.mark.parametrize("to", ["hf", "llama", "mindspore", "dcp"])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind: str, to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = model_folder(tmp_path / "model", KINDS[kind])
    status = convert(source, tmp_path / "out", "--to", to)
    if to == "llama" and kind == "mixture":
        assert status == 1
        assert "A mixture of experts is no Llama" in capsys.readouterr().err
        return
    assert status == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert_equal(open_checkpoint(tmp_path / "out"), open_checkpoint(source))
    assert convert(tmp_path / "out", tmp_path / "back", "--to", "hf") == 0
    assert (tmp_path / "back/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert (tmp_path / "back/config.json").read_bytes() == (source / "config.json").read_bytes()


def test_gguf_there_and_back(model: Path, tmp_path: Path) -> None:
    assert convert(model, tmp_path / "out.gguf", "--to", "gguf") == 0
    assert_equal(open_checkpoint(tmp_path / "out.gguf"), open_checkpoint(model))
    assert convert(model, tmp_path / "half.gguf", "--to", "gguf", "--gguf-type", "F16") == 0
    half, whole = open_checkpoint(tmp_path / "half.gguf"), open_checkpoint(model)
    name = "transformer.h.1.self_attention.query.weight"
    assert torch.equal(half.tensors[name].read(), whole.tensors[name].read().half())
    assert torch.equal(
        half.tensors["transformer.ln_f.weight"].read(), whole.tensors["transformer.ln_f.weight"].read()
    )


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.006), ("Q4_0", 0.09)])
def test_quantised_gguf(kind: str, error: float, model: Path, tmp_path: Path) -> None:
    """Within half a step of each block's scale, and read back as these numbers."""
    assert convert(model, tmp_path / "out.gguf", "--to", "gguf", "--gguf-type", kind) == 0
    found, expected = open_checkpoint(tmp_path / "out.gguf"), open_checkpoint(model)
    name = "transformer.h.0.self_attention.key_value.weight"
    difference = (found.tensors[name].read() - expected.tensors[name].read()).abs().max()
    assert 0 < difference < error
    # Rows of 48 do not fill blocks of 32: those stay fp16.
    name = "transformer.h.0.mlp.down_proj.weight"
    assert torch.equal(found.tensors[name].read(), expected.tensors[name].read().half())


def test_k_quants_need_a_package(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert convert(model, tmp_path / "out", "--to", "gguf", "--gguf-type", "Q4_K_M") == 1
    assert "llama-cpp-python" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_the_extra_gguf_brings_the_quantiser() -> None:
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text(encoding="utf-8"))
    [package] = project["project"]["optional-dependencies"]["gguf"]
    assert package.startswith("llama-cpp-python")


def test_k_quants_by_llama_cpp(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for its quantiser, which copies; the real one is in the oracle tests."""

    def quantise(source: bytes, target: bytes, params: SimpleNamespace) -> int:
        assert params.ftype == 15
        shutil.copy(source, target)
        return 0

    stand_in = SimpleNamespace(
        llama_model_quantize=quantise,
        llama_model_quantize_default_params=lambda: SimpleNamespace(ftype=0),
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", stand_in)
    assert convert(model, tmp_path / "one.gguf", "--to", "gguf", "--gguf-type", "Q4_K_M") == 0
    assert convert(model, tmp_path / "out", "--to", "gguf", "--gguf-type", "Q4_K_M") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "model-Q4_K_M.gguf"]
    assert "FROM ./model-Q4_K_M.gguf" in (tmp_path / "out/Modelfile").read_text("utf-8")
    assert (tmp_path / "one.gguf").stat().st_size > 100_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "one.gguf", "out"]


def test_an_interrupted_quantiser_is_called_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fp16 file that it reads is kept, unless another one is wanted."""
    statuses, seen = [1, 0, 1], []

    def quantise(source: bytes, target: bytes, params: SimpleNamespace) -> int:
        seen.append((source, Path(source.decode()).stat().st_mtime_ns))
        shutil.copy(source, target)
        return statuses.pop(0)

    stand_in = SimpleNamespace(
        llama_model_quantize=quantise,
        llama_model_quantize_default_params=lambda: SimpleNamespace(ftype=0),
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", stand_in)
    words = ("--to", "gguf", "--gguf-type", "Q4_K_M")
    assert convert(model, tmp_path / "out", *words) == 1
    assert "stopped with status 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert convert(model, tmp_path / "out", *words) == 0
    assert seen[0] == seen[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]

    assert convert(model, tmp_path / "other", *words) == 1
    [kept] = (tmp_path / "other.quantising").glob("*.gguf")
    statuses.append(0)
    assert convert(model, tmp_path / "other", *words, "--length", "32") == 0
    assert seen[3][0] != os.fsencode(kept)
    assert not (tmp_path / "other.quantising").exists()


def test_dcp_begins_anew_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/__0_0.distcp").write_bytes(b"of a killed run")
    monkeypatch.setattr(dcp_writing._LazyPlanner, "lookup_object", broken)
    assert convert(model, tmp_path / "out", "--to", "dcp") == 1
    assert "No space left on device. Run the command again: it begins anew." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    monkeypatch.undo()
    assert convert(model, tmp_path / "out", "--to", "dcp") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_modelfile(model: Path, tmp_path: Path) -> None:
    assert convert(model, tmp_path / "out", "--to", "gguf", "--length", "32") == 0
    text = (tmp_path / "out/Modelfile").read_text(encoding="utf-8")
    assert (tmp_path / "out/model-F32.gguf").is_file()
    for line in ("FROM ./model-F32.gguf", 'PARAMETER stop "<_end>"', "PARAMETER num_ctx 32", "<_bot>"):
        assert line in text


def test_length_sets_the_rotary_base(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model", KINDS["stretched"])
    bases = []
    for length in ("64", "128"):
        assert convert(source, tmp_path / length, "--to", "llama", "--length", length) == 0
        raw = json.loads((tmp_path / length / "config.json").read_text())
        bases.append(raw["rope_theta"])
        assert raw["rope_parameters"]["rope_theta"] == raw["rope_theta"]
    assert bases[0] == pytest.approx(10000 * 3 ** (8 / 6))
    assert bases[1] == pytest.approx(10000 * 7 ** (8 / 6))


@pytest.mark.parametrize("to", ["hf", "llama", "mindspore", "dcp"])
def test_dtype(to: str, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    assert convert(source, tmp_path / "out", "--to", to, "--dtype", "bfloat16") == 0
    found = open_checkpoint(tmp_path / "out")
    for name, tensor in open_checkpoint(source).tensors.items():
        assert torch.equal(found.tensors[name].read(), tensor.read().to(torch.bfloat16)), name


@pytest.mark.parametrize("to", ["hf", "llama"])
def test_max_shard_size(to: str, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    assert convert(source, tmp_path / "out", "--to", to, "--max-shard-size", "40KB") == 0
    files = sorted((tmp_path / "out").glob("model-*-of-*.safetensors"))
    assert len(files) > 1
    assert all(path.stat().st_size < 44_000 for path in files)
    assert_equal(open_checkpoint(tmp_path / "out"), open_checkpoint(source))


def test_mindspore_options(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model", KINDS["mixture"])
    words = (
        "--to",
        "mindspore",
        "--layout",
        "dp2,mp2",
        "--prefix",
        "weights_",
        "--gmm",
        "--qkv-concat",
        "--crc",
    )
    assert convert(source, tmp_path / "out", *words) == 0
    files = sorted(path.name for path in (tmp_path / "out").glob("rank_*/*"))
    assert files == [f"weights_{number}.ckpt" for number in range(4)]
    path = tmp_path / "out/rank_3/weights_3.ckpt"
    values = read_values(path)
    assert has_crc(path)
    assert values["model.layers.0.attention.w_qkv.weight"].dims == (32, 32)
    assert values["model.layers.0.feed_forward.ffn.w1.weight"].dims == (4, 32, 12)
    assert len(list((tmp_path / "out/strategy").iterdir())) == 4
    assert_equal(open_checkpoint(tmp_path / "out"), open_checkpoint(source))


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_one_mindspore_file(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = model_folder(tmp_path / "model")
    out = tmp_path / "sub" / f"out{suffix}"
    assert convert(source, out, "--to", "mindspore") == 0
    if suffix == ".safetensors":
        assert "model.layers.0.attention.wq.weight" in load_file(out)
    assert convert(out, tmp_path / "hf", "--to", "hf") == 1
    assert "--model-config" in capsys.readouterr().err
    assert convert(out, tmp_path / "hf", "--to", "hf", "--model-config", source / "config.json") == 0
    assert_equal(open_checkpoint(tmp_path / "hf"), open_checkpoint(source))


def test_model_config_of_mindformers(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    assert convert(source, tmp_path / "out.ckpt", "--to", "mindspore") == 0
    yaml = """
model:
  model_config:
    vocab_size: 64
    hidden_size: 32
    num_layers: 2
    num_heads: 4
    n_kv_heads: 2
    intermediate_size: 48
    seq_length: 128
    max_position_embedding: 64
    rms_norm_eps: 1.0e-5
    extend_method: "DYNAMIC_NTK"
    pad_token_id: -1
"""
    (tmp_path / "predict.yaml").write_text(yaml)
    words = ("--to", "hf", "--model-config", tmp_path / "predict.yaml")
    assert convert(tmp_path / "out.ckpt", tmp_path / "hf", *words) == 0
    found = open_checkpoint(tmp_path / "hf")
    assert found.config.rope.scheme == "mindformers-dynamic"
    assert (found.config.rope.training_length, found.config.seq_length) == (64, 128)
    assert same_numbers(found.tensors["lm_head.weight"], open_checkpoint(source).tensors["lm_head.weight"])


def test_bin_and_single_files(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    for name in ("model.pth", "plain.safetensors"):
        path = tmp_path / name
        torch.save(tensors, path) if name.endswith("pth") else save_file(tensors, path)
        out = tmp_path / f"{name}-out"
        assert convert(path, out, "--to", "hf", "--model-config", source / "config.json") == 0
        assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_strategy_elsewhere(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    assert convert(source, tmp_path / "out", "--to", "mindspore", "--layout", "dp2,mp2,pp2,opt") == 0
    (tmp_path / "out/strategy").rename(tmp_path / "elsewhere")
    assert convert(tmp_path / "out", tmp_path / "hf", "--to", "hf", "--strategy", tmp_path / "elsewhere") == 0
    assert_equal(open_checkpoint(tmp_path / "hf"), open_checkpoint(source))


def test_names_of_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for to, name, message in (
        ("llama", "out.gguf", "llama is written as a folder. Leave .gguf out. .gguf is written by --to gguf"),
        ("hf", "out.safetensors", "hf is written as a folder. Leave .safetensors out"),
        ("gguf", "out.zip", "gguf is written as a folder. Leave .zip out."),
    ):
        assert convert("demo", tmp_path / name, "--to", to) == 2
        assert message in capsys.readouterr().err
    assert convert("demo", tmp_path / "file/below/out", "--to", "hf") == 1
    assert f"{tmp_path / 'file'} is a file, not a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_gmm_is_for_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("demo", tmp_path / "out", "--to", "mindspore", "--gmm") == 1
    assert "this model has none. Leave --gmm out." in capsys.readouterr().err


def test_config_of_a_llama_folder(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    assert convert(source, tmp_path / "llama", "--to", "llama") == 0
    assert convert(source, tmp_path / "out.ckpt", "--to", "mindspore") == 0
    words = ("--to", "hf", "--model-config", tmp_path / "llama")
    assert convert(tmp_path / "out.ckpt", tmp_path / "hf", *words) == 0
    assert_equal(open_checkpoint(tmp_path / "hf"), open_checkpoint(source))


@pytest.mark.parametrize("to", ["hf", "dcp"])
def test_ctrl_c(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said what becomes of what was written; torch's own writer fails once more while it is closed."""
    source = model_folder(tmp_path / "model")
    checkpoint = open_checkpoint(source)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FileTensor, "read_into", interrupt)
    monkeypatch.setattr(FileTensor, "runs", lambda self: None)
    with pytest.raises(KeyboardInterrupt):
        write(checkpoint, tmp_path / "out", to)
    assert "Interrupted. Run the command again: it " in caplog.text
    assert not (tmp_path / "out").exists()


def test_options_of_another_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--gmm",), ("--length", "9"), ("--gguf-type", "F16"), ("--layout", "mp2"), ("--crc",)):
        assert convert("demo", tmp_path / "out", "--to", "hf", *words) == 2
        assert "has no meaning for hf" in capsys.readouterr().err


def sliced(tmp_path: Path) -> Path:
    assert (
        convert(model_folder(tmp_path / "model"), tmp_path / "ms", "--to", "mindspore", "--layout", "dp2,mp2")
        == 0
    )
    return tmp_path / "ms"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def break_truncated(ms: Path) -> None:
    truncate(ms / "rank_1/checkpoint_1.ckpt")


def break_rank(ms: Path) -> None:
    (ms / "rank_2/checkpoint_2.ckpt").unlink()
    (ms / "rank_2").rmdir()


def break_last_rank(ms: Path) -> None:
    (ms / "rank_3/checkpoint_3.ckpt").unlink()
    (ms / "rank_3").rmdir()


def break_heads(ms: Path) -> None:
    raw = json.loads((ms / "config.json").read_text())
    (ms / "config.json").write_text(json.dumps({**raw, "num_key_value_heads": 4}))


def break_strategy(ms: Path) -> None:
    for path in (ms / "strategy").iterdir():
        content = path.read_bytes()
        path.write_bytes(content.replace(b"layers.1.attention.wq", b"layers.7.attention.wq"))


def break_unknown(ms: Path) -> None:
    for path in [*ms.glob("rank_*/*.ckpt"), *(ms / "strategy").iterdir()]:
        path.write_bytes(path.read_bytes().replace(b"layers.1.ffn_norm", b"layers.1.xyz_norm"))


def break_shape(ms: Path) -> None:
    (ms / "rank_1/checkpoint_1.ckpt").write_bytes(
        (ms / "rank_0/checkpoint_0.ckpt").read_bytes().replace(b"\x08\x10\x08\x20", b"\x08\x20\x08\x10")
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_truncated, r"checkpoint_1\.ckpt is truncated or damaged behind .*announces"),
        (break_rank, r"lacks rank_2; it has rank_0 to rank_3"),
        (break_last_rank, r"files of 3 ranks; the strategy describes 4"),
        (break_heads, r"key_value\.weight has shape \[32, 32\]; the config says \[64, 32\]"),
        (break_strategy, r"strategy says nothing of model\.layers\.1\.attention\.wq"),
        (break_unknown, r"layers\.1\.xyz_norm\.weight is no tensor of a TeleChat model"),
        (break_shape, r"has shape \[32, 16\] in rank_1 and \[16, 32\] in rank_0"),
    ],
)
def test_damaged_sources(
    damage: Callable[[Path], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ms = sliced(tmp_path)
    damage(ms)
    before = {path: path.read_bytes() for path in ms.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert convert(ms, tmp_path / "out", "--to", "hf") == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    assert before == {path: path.read_bytes() for path in ms.rglob("*") if path.is_file()}


def test_target_that_holds_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = model_folder(tmp_path / "model")
    for to in ("hf", "mindspore", "dcp"):
        assert convert(source, source, "--to", to) == 1
        assert "exists already" in capsys.readouterr().err


def test_other_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = model_folder(tmp_path / "model")
    (tmp_path / "encrypted.ckpt").write_bytes(struct.pack("<I", 0x7F3A5ED8) + bytes(100))
    (tmp_path / "text.ckpt").write_bytes(b"not a checkpoint at all")
    (tmp_path / "empty").mkdir()
    config = ("--to", "hf", "--model-config", source)
    cases = [
        ((tmp_path / "nothing", tmp_path / "o", "--to", "hf"), "There is no"),
        ((tmp_path / "empty", tmp_path / "o", "--to", "hf"), "holds no checkpoint"),
        (
            (tmp_path / "encrypted.ckpt", tmp_path / "o", "--to", "hf", "--model-config", source),
            "is encrypted",
        ),
        ((tmp_path / "text.ckpt", tmp_path / "o", *config), "is no MindSpore"),
        ((source, tmp_path / "o", "--to", "mindspore", "--layout", "mp4"), "cannot be shared by 4 ranks"),
        ((source, tmp_path / "o", "--to", "mindspore", "--layout", "xp4"), "is no layout"),
        ((source, tmp_path / "o.ckpt", "--to", "mindspore", "--layout", "mp2"), "needs a folder"),
        ((source, tmp_path / "o", "--to", "hf", "--strategy", source), "no sliced MindSpore checkpoint"),
        ((source, tmp_path / "o.gguf", "--to", "gguf"), "neither tokenizer.model nor tokenizer.json"),
        (
            (source, tmp_path / "o", "--to", "mindspore", "--layout", "dp2,opt", "--qkv-concat"),
            "Leave opt out",
        ),
    ]
    for words, message in cases:
        assert convert(*words) in (1, 2), words
        assert message in capsys.readouterr().err, words
        assert not Path(words[1]).exists()
