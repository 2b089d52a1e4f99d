"""Quantised folders: there and back bit by bit, complete or not at all, and read by others as meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.checkpoint.folders import random_model, tensors_of, write_bin, write_config, write_safetensors
from tests.unit.quant.quant_models import EXPERTS, PLAIN, TIED, assert_same, quantised_layers

import telechat
from telechat import QuantizeConfig, load_model
from telechat.checkpoint import check_folder, save_model
from telechat.checkpoint.formats import reference
from telechat.cli.main import main
from telechat.errors import CheckpointError, ConfigError
from telechat.models import TeleChatConfig
from telechat.quant import quantize_model

CONFIGS = [PLAIN, TIED, EXPERTS]
NAMES = ["plain", "tied", "experts"]


def plain_folder(folder: Path, config: TeleChatConfig = PLAIN, dtype: torch.dtype = torch.float32) -> Path:
    write_config(folder, config)
    write_safetensors(folder, tensors_of(random_model(config), dtype))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "generation_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_saved_and_loaded(tmp_path: Path, config: TeleChatConfig, bits: int) -> None:
    model = quantize_model(random_model(config), bits, 64)
    save_model(model, tmp_path)
    assert_same(load_model(tmp_path, device="cpu"), model)
    assert [problem for problem in check_folder(tmp_path).problems if "tokenizer" not in problem] == []


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_a_folder_quantised_file_by_file(tmp_path: Path, config: TeleChatConfig, bits: int) -> None:
    source = plain_folder(tmp_path / "plain", config)
    steps: list[tuple[int, int]] = []
    out = telechat.quantize(
        source,
        tmp_path / "out",
        QuantizeConfig(bits=bits, group_size=32),
        on_progress=lambda done, of: steps.append((done, of)),
        max_shard_bytes=60_000,
    )
    assert_same(
        load_model(out, device="cpu"), load_model(source, device="cpu", quantize=f"int{bits}", group_size=32)
    )
    assert len(list(out.glob("*.safetensors"))) > 1 and (out / "tokenizer.json").exists()
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "plain"]


def test_other_layouts_and_dtypes(tmp_path: Path) -> None:
    source = tmp_path / "plain"
    write_config(source, PLAIN)
    write_bin(source, tensors_of(random_model(PLAIN), torch.bfloat16, prefix=False))
    out = telechat.quantize(source, tmp_path / "out")
    stored = load_file(out / "model.safetensors")
    assert stored["transformer.ln_f.weight"].dtype == torch.bfloat16
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert_same(load_model(out, device="cpu"), load_model(source, device="cpu", quantize="int4"))


@pytest.mark.parametrize("bits", [8, 4])
def test_layout_on_disk(tmp_path: Path, bits: int) -> None:
    """Read as the format's description says: codes with half the range added, low bits first."""
    model = quantize_model(random_model(PLAIN), bits, 32)
    save_model(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    name = "transformer.h.0.mlp.down_proj"
    words, scales = stored[f"{name}.weight_packed"].long() & 0xFFFFFFFF, stored[f"{name}.weight_scale"]
    assert stored[f"{name}.weight_shape"].tolist() == [128, 256]
    assert words.shape == (128, 256 * bits // 32) and scales.shape == (128, 8)
    shifts = torch.arange(0, 32, bits)
    codes = (words[..., None] >> shifts & (2**bits - 1)).view(128, 256) - 2 ** (bits - 1)
    weight = codes.view(128, 8, 32) * scales.float()[..., None]
    assert torch.equal(weight.view(128, 256), quantised_layers(model)[name].dequantise())
    section = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert section["quant_method"] == "compressed-tensors" and section["format"] == "pack-quantized"
    assert section["config_groups"]["group_0"]["weights"]["num_bits"] == bits


def test_nothing_half_written(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain")
    tensors = tensors_of(random_model(PLAIN))
    tensors["transformer.h.1.mlp.down_proj.weight"][0, 0] = float("inf")
    write_safetensors(source, tensors)
    with pytest.raises(ConfigError, match=r"h\.1\.mlp\.down_proj\.weight"):
        telechat.quantize(source, tmp_path / "out", max_shard_bytes=60_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]


def test_refused(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain")
    out = telechat.quantize(source, tmp_path / "out")
    with pytest.raises(CheckpointError, match="exists already"):
        telechat.quantize(source, out)
    with pytest.raises(ConfigError, match="quantised already, to int4 in groups of 32"):
        telechat.quantize(out, tmp_path / "again")
    with pytest.raises(ConfigError, match="quantised already, to int4"):
        load_model(out, quantize="int8")
    with pytest.raises(ConfigError, match="divide into groups of 128"):
        odd = plain_folder(tmp_path / "odd", PLAIN.replace(ffn_hidden_size=192))
        telechat.quantize(odd, tmp_path / "other", QuantizeConfig(group_size=128))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "hqq"}, "quantised .method hqq."),
        ({"quant_method": "gptq"}, "config.json: bits is None"),
        ({"format": "int-quantized"}, "format int-quantized"),
        ({"config_groups": {}}, "one group of layers"),
        ({"config_groups": {"a": {"weights": {"num_bits": 2, "group_size": 32}}}}, "bits is 2"),
        (
            {"config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": False}}}},
            "symm",
        ),
        ({"config_groups": {"a": {"weights": {}, "input_activations": {}}}}, "bits is 0"),
        (
            {"config_groups": {"a": {"weights": {}, "input_activations": {"num_bits": 8}}}},
            "not activations",
        ),
    ],
)
def test_formats_that_cannot_be_read(tmp_path: Path, change: dict[str, object], message: str) -> None:
    save_model(quantize_model(random_model(PLAIN), 4, 32), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["quantization_config"].update(change)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path, device="cpu")
    assert any(message in problem or "quant" in problem for problem in check_folder(tmp_path).problems)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight_scale"), "lacks lm_head.weight_scale"),
        (lambda t: t.update({"lm_head.weight_scale": t["lm_head.weight_scale"][:, :2]}), "has shape"),
        (lambda t: t.update({"lm_head.weight_packed": t["lm_head.weight_packed"].float()}), "expected int32"),
        (lambda t: t.update({"lm_head.weight_g_idx": torch.zeros(3)}), "no place for"),
    ],
)
def test_damaged_tensors(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    save_model(quantize_model(random_model(PLAIN), 4, 32), tmp_path)
    tensors = {name: value.clone() for name, value in load_file(tmp_path / "model.safetensors").items()}
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path, device="cpu")


def test_layers_may_stay_plain(tmp_path: Path) -> None:
    """Which are quantised is read from the tensors."""
    model = quantize_model(random_model(PLAIN), 4, 32)
    save_model(model, tmp_path)
    tensors = dict(load_file(tmp_path / "model.safetensors"))
    name = "transformer.h.0.self_attention.dense"
    for suffix in ("packed", "scale", "shape"):
        del tensors[f"{name}.weight_{suffix}"]
    tensors[f"{name}.weight"] = model.get_submodule(name).dequantise()  # type: ignore[operator]
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path, device="cpu")
    assert name not in quantised_layers(loaded) and len(quantised_layers(loaded)) == 12
    ids = torch.arange(10)[None]
    assert torch.allclose(loaded(ids), model(ids), atol=1e-4)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = plain_folder(tmp_path / "plain")
    out = tmp_path / "out"
    words = ["quantize", "run", str(source), str(out), "--method", "rtn", "--bits", "8", "--group-size", "64"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out) and "23 of 23 tensors" in printed.err
    scheme = next(iter(quantised_layers(load_model(out, device="cpu")).values())).scheme
    assert (scheme.bits, scheme.group_size) == (8, 64)
    shutil.rmtree(out)
    assert main([*words[:4], "--method", "gguf"]) == 1
    assert "Unknown quantisation method 'gguf'. Known: rtn, gptq." in capsys.readouterr().err
    assert main([*words[:4], "--bits", "3"]) == 1
    assert "bits is 3; weights are quantised to 8 or 4" in capsys.readouterr().err
    assert not out.exists()


def test_a_checkpoint_of_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder holds weights of its own; no note in it leads back to those that it was made of."""
    monkeypatch.setattr(reference, "cache_folder", lambda: tmp_path / "cache")
    source = plain_folder(tmp_path / "plain")
    assert main(["checkpoint", "convert", str(source), str(tmp_path / "ms"), "--to", "mindspore"]) == 0
    out = telechat.quantize(tmp_path / "ms", tmp_path / "out")
    expected = load_model(tmp_path / "ms", device="cpu", quantize="int4")
    shutil.rmtree(tmp_path / "ms")
    assert_same(load_model(out, device="cpu"), expected)
    assert {"tokenizer.json", "generation_config.json"} <= {path.name for path in out.iterdir()}
