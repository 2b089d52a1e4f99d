"""W8A8: the Ascend tool's command line, files and tensors; outliers, ranges and levels do what they say."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.checkpoint.folders import random_model, tensors_of, write_config, write_safetensors
from tests.unit.quant.quant_models import EXPERTS, PLAIN

import telechat
from telechat import load_model
from telechat.checkpoint import check_folder, save_model
from telechat.cli.main import main
from telechat.errors import CheckpointError, ConfigError
from telechat.layers.int8 import DynamicInt8Linear, StaticInt8Linear
from telechat.models import TeleChatConfig, TeleChatModel
from telechat.models.executors import choose_executor
from telechat.ops.cpu import library
from telechat.quant import Int8Config, LayerDone
from telechat.quant.observers import DisableLevel, Observer
from telechat.quant.smoothing import ANTI_METHODS, smoothing_scale

ROWS = [torch.randint(96, (24,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(12)]
HELD_OUT = torch.randint(96, (4, 24), generator=torch.Generator().manual_seed(99))
WEIGHTS = "quant_model_weight_w8a8.safetensors"


def plain_folder(
    folder: Path, config: TeleChatConfig = PLAIN, dtype: torch.dtype = torch.float16, outliers: float = 1.0
) -> Path:
    """A model some of whose norms make a few inputs of the layers behind them stand out."""
    tensors = tensors_of(random_model(config))
    for name, value in tensors.items():
        if name.endswith("layernorm.weight"):
            value[::40] *= outliers
    write_config(folder, config, torch_dtype=str(dtype).removeprefix("torch."))
    write_safetensors(folder, {name: value.to(dtype) for name, value in tensors.items()})
    (folder / "tokenizer.json").write_text("{}")
    return folder


def int8(source: Path, out: Path, **settings: Any) -> Path:
    return telechat.quantize(source, out, Int8Config(**settings), examples=ROWS)


def int8_layers(model: TeleChatModel) -> dict[str, torch.nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, StaticInt8Linear | DynamicInt8Linear)}


@torch.inference_mode()
def damage(folder: Path, source: Path) -> float:
    model, plain = (load_model(place, device="cpu", dtype="float32") for place in (folder, source))
    return float((model.hidden_states(HELD_OUT) - plain.hidden_states(HELD_OUT)).square().mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_and_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    source = plain_folder(tmp_path / "plain", dtype=dtype)
    out = int8(source, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "quant_model_description.json",
        WEIGHTS,
        "tokenizer.json",
    ]
    stored = load_file(out / WEIGHTS)
    base = "transformer.h.0.self_attention.dense"
    assert stored[f"{base}.weight"].dtype == torch.int8
    assert stored[f"{base}.input_scale"].dtype == stored[f"{base}.input_offset"].dtype == dtype
    assert stored[f"{base}.input_scale"].shape == (1,)
    assert stored[f"{base}.quant_bias"].dtype == torch.int32
    deq_dtype = torch.int64 if dtype == torch.float16 else torch.float32
    assert stored[f"{base}.deq_scale"].dtype == deq_dtype and f"{base}.bias" not in stored
    assert stored["transformer.h.0.mlp.down_proj.weight"].dtype == dtype
    query, key_value = ("transformer.h.0.self_attention." + name for name in ("query", "key_value"))
    assert torch.equal(stored[f"{query}.input_scale"], stored[f"{key_value}.input_scale"])
    description = json.loads((out / "quant_model_description.json").read_text())
    assert description.pop("version") == "1.0.0" and description.pop("model_quant_type") == "W8A8"
    assert set(description) == set(stored)
    assert description[f"{base}.quant_bias"] == "W8A8"
    assert description["transformer.h.0.mlp.down_proj.weight"] == "FLOAT"
    assert json.loads((out / "config.json").read_text())["quantize"] == "w8a8"
    assert not check_folder(out).problems


def test_loaded_and_computed_in_int8(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain")
    out = int8(source, tmp_path / "out")
    model = load_model(out, device="cpu", dtype="float32")
    layers = int8_layers(model)
    assert len(layers) == 10 and not any(name.endswith("down_proj") for name in layers)
    assert damage(out, source) < 0.01
    described = choose_executor(model.eval()).describe()
    assert library.obstacle() is not None or "10 w8a8" in described, described


@pytest.mark.parametrize("method", ANTI_METHODS)
def test_moving_outliers_helps(tmp_path: Path, method: str) -> None:
    source = plain_folder(tmp_path / "plain", dtype=torch.float32, outliers=30.0)
    plain, smooth = int8(source, tmp_path / "a"), int8(source, tmp_path / "b", anti_method=method)
    assert damage(smooth, source) < 0.7 * damage(plain, source)
    before = load_file(source / "model.safetensors")["transformer.h.0.input_layernorm.weight"]
    after = load_file(smooth / WEIGHTS)["transformer.h.0.input_layernorm.weight"]
    assert after[0] < before[0]


def test_moving_changes_nothing_by_itself(tmp_path: Path) -> None:
    """With all readers left in floats but one, those follow the norm."""
    source = plain_folder(tmp_path / "plain", dtype=torch.float32, outliers=30.0)
    names = [f"transformer.h.{i}.self_attention.query" for i in range(2)]
    names += [f"transformer.h.{i}.mlp.{n}" for i in range(2) for n in ("up_proj", "gate_proj")]
    names += [f"transformer.h.{i}.self_attention.dense" for i in range(2)]
    out = int8(source, tmp_path / "out", anti_method="m1", disable_names=tuple(names))
    model, plain = load_model(out, device="cpu"), load_model(source, device="cpu")
    assert sorted(int8_layers(model)) == [f"transformer.h.{i}.self_attention.key_value" for i in range(2)]
    x = torch.randn(1, 5, 128)
    ours, theirs = model.transformer.blocks[0], plain.transformer.blocks[0]
    moved = ours.self_attention.query(ours.input_layernorm(x))
    assert torch.allclose(moved, theirs.self_attention.query(theirs.input_layernorm(x)), atol=1e-4)


def test_dynamic(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain", outliers=10.0)
    out = int8(source, tmp_path / "out", is_dynamic=True)
    stored = load_file(out / WEIGHTS)
    base = "transformer.h.0.self_attention.dense"
    assert stored[f"{base}.weight_scale"].shape == (128, 1) and f"{base}.bias" in stored
    description = json.loads((out / "quant_model_description.json").read_text())
    assert description[f"{base}.weight"] == "W8A8_DYNAMIC" and description[f"{base}.bias"] == "FLOAT"
    assert damage(out, source) < 0.01
    stored[f"{base}.weight_offset"][3] = 1
    save_file(stored, out / WEIGHTS)
    with pytest.raises(CheckpointError, match="weight_offset is not zero"):
        load_model(out, device="cpu")


def test_disable_level_and_names(tmp_path: Path) -> None:
    """The layers whose inputs stand out most: those behind the norms with outliers."""
    tensors = tensors_of(random_model(PLAIN))
    tensors["transformer.h.1.post_attention_layernorm.weight"][7] *= 60
    source = plain_folder(tmp_path / "plain")
    write_safetensors(source, {name: value.half() for name, value in tensors.items()})
    out = int8(source, tmp_path / "out", disable_level="L2")
    left = set(int8_layers(load_model(out, device="cpu")))
    assert len(left) == 8 and not {f"transformer.h.1.mlp.{n}" for n in ("up_proj", "gate_proj")} & left
    with pytest.raises(ConfigError, match=r"there is no layer 'transformer\.h\.9'"):
        int8(source, tmp_path / "no", disable_names=("transformer.h.9",))
    with pytest.raises(ConfigError, match=r"disable_level \(L99\) leave none of 12 layers"):
        int8(source, tmp_path / "no", disable_level="L99")
    for wrong in ("L", "L01", "3", "L-1"):
        with pytest.raises(ConfigError, match="disable_level is"):
            DisableLevel.parse(wrong)


def test_ranges() -> None:
    observer = Observer(64)
    values = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    values[0, 0] = 10.0
    for piece in values.split(1000):
        observer.add(piece)
    assert observer.range("min-max") == (float(values.min()), 10.0)
    assert observer.score == pytest.approx(float(values.abs().max() / values.std()), rel=1e-3)
    low, high = observer.range("histogram")
    assert 3.0 < high < 9.0 and low == pytest.approx(float(values.min()), abs=1.0)
    assert observer.range("auto") == observer.range("histogram")
    values[1, 1] = 400.0
    observer.add(values)
    assert observer.score > 50 and observer.range("auto") == observer.range("min-max")
    with pytest.raises(ConfigError, match="not finite"):
        observer.add(values / 0)


def test_act_methods_are_obeyed(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain", outliers=6.0)
    scales = []
    for number in (1, 2):
        stored = load_file(int8(source, tmp_path / str(number), act_method=number) / WEIGHTS)
        scales.append(float(stored["transformer.h.0.mlp.up_proj.input_scale"]))
    assert scales[1] <= scales[0]


def test_thresholds_of_m2() -> None:
    largest = torch.ones(64)
    largest[5] = 50.0
    sample = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)) * largest / 3
    scale = smoothing_scale("m2", largest, [torch.randn(32, 64)], sample)
    assert scale[5] > 2 and bool((scale[:5] == 1).all())


def test_parts_and_resuming(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain")
    whole = load_file(int8(source, tmp_path / "whole") / WEIGHTS)

    def kill(layer: LayerDone) -> None:
        if layer.name.startswith("transformer.h.1."):
            raise KeyboardInterrupt

    config = Int8Config(part_file_size=0.0001)
    with pytest.raises(KeyboardInterrupt):
        telechat.quantize(source, tmp_path / "out", config, examples=ROWS, on_layer=kill)
    again: list[str] = []
    out = telechat.quantize(
        source, tmp_path / "out", config, examples=ROWS, on_layer=lambda layer: again.append(layer.name)
    )
    assert all(".h.1." in name for name in again)
    parts = sorted(out.glob("quant_model_weight_w8a8-*-of-*.safetensors"))
    assert len(parts) > 2 and (out / f"{WEIGHTS}.index.json").exists()
    found = {name: value for part in parts for name, value in load_file(part).items()}
    assert all(torch.equal(found[name], value) for name, value in whole.items()) and len(found) == len(whole)
    assert len(int8_layers(load_model(out, device="cpu"))) == 10


def test_description_and_weights_must_agree(tmp_path: Path) -> None:
    out = int8(plain_folder(tmp_path / "plain"), tmp_path / "out")
    path = out / "quant_model_description.json"
    description = json.loads(path.read_text())
    (out / "quant_model_description_w8a8.json").write_text(json.dumps(description))
    path.unlink()
    assert int8_layers(load_model(out, device="cpu"))  # the older name
    (out / "quant_model_description_w8a8.json").unlink()
    path.write_text(json.dumps({**description, "transformer.extra": "FLOAT"}))
    with pytest.raises(CheckpointError, match=r"the weights of the quantised model lack transformer\.extra"):
        load_model(out, device="cpu")
    path.write_text(json.dumps({**description, "transformer.ln_f.weight": "W8A8SC"}))
    with pytest.raises(CheckpointError, match="type W8A8SC"):
        load_model(out, device="cpu")


def test_refusals(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain", PLAIN.replace(residual_post_layernorm=True))
    with pytest.raises(ConfigError, match="m4 does not support TeleChat"):
        Int8Config(anti_method="m4")
    with pytest.raises(ConfigError, match="anti_method is 'm9'"):
        Int8Config(anti_method="m9")
    with pytest.raises(ConfigError, match="act_method is 4"):
        Int8Config(act_method=4)
    with pytest.raises(ConfigError, match="nothing can be moved out of them"):
        int8(source, tmp_path / "out", anti_method="m2")
    with pytest.raises(ConfigError, match="no calibration rows"):
        telechat.quantize(source, tmp_path / "out", Int8Config())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]


def test_experts_that_no_token_reaches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They have no ranges, so they stay in floats."""
    caplog.set_level(logging.INFO, logger="telechat")
    source = plain_folder(tmp_path / "plain", EXPERTS)
    out = telechat.quantize(source, tmp_path / "out", Int8Config(), examples=[[5]])
    assert "no calibration token reached transformer.h.0.mlp.local_experts." in caplog.text
    layers = int8_layers(load_model(out, device="cpu"))
    assert 0 < sum("local_experts" in name for name in layers) <= 8  # two of four in each layer, gate and up


def test_the_official_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "boolq.jsonl"
    row = {
        "id": 0,
        "inputs_pretokenized": "<_user>is the sky blue -- The sky.\nQuestion: is it?\nAnswer:<_bot>",
    }
    rows.write_text((json.dumps(row) + "\n") * 5)
    words = (
        f"quantize run --model_path demo --save_directory {tmp_path / 'out'} --w_bit 8 --a_bit 8 "
        f"--disable_level L0 --device_type cpu --anti_method m2 --act_method 3 --calib_file {rows}"
    ).split()
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "out") and "5 rows" in printed.err
    assert (tmp_path / "out" / WEIGHTS).exists()
    stored = load_file(tmp_path / "out" / WEIGHTS)
    assert stored["transformer.h.0.self_attention.query.deq_scale"].dtype == torch.float32  # a bf16 model
    for changed, message in (
        (["--anti-method", "m4"], "m4 does not support TeleChat"),
        (["--w-bit", "4"], "--w-bit 4 --a-bit 8 cannot be made"),
        (["--disable-level", "L01"], "disable_level is 'L01'"),
        (["--bits", "8"], "--bits says nothing to the method w8a8"),
        (["--calib-texts", "hi"], "exclude one another"),
    ):
        assert main([*words[:5], str(tmp_path / "no"), *words[6:], *changed]) in (1, 2)
        assert message in capsys.readouterr().err
    assert main(["quantize", "run", "demo", str(tmp_path / "no"), "--anti-method", "m2"]) == 2
    assert "--anti-method says nothing to the method rtn" in capsys.readouterr().err
    assert main(["quantize", "run", "demo"]) == 2
    assert "OUT is missing" in capsys.readouterr().err


def test_sparse_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The official command for the 12B: few integers need more than four bits, and the files say w8a8s."""
    words = ["quantize", "run", "--model_path", "demo", "--save_directory", str(tmp_path / "out")]
    words += ["--w_bit", "4", "--a_bit", "8", "--calib_texts", "<_user>你是谁？<_bot>"]
    assert main([*words, "--fraction", "0.011", "--co_sparse", "True"]) == 0
    stored = load_file(tmp_path / "out" / "quant_model_weight_w8a8s.safetensors")
    large = num_all = 0
    for value in stored.values():
        if value.dtype == torch.int8:
            large += int(((value < -8) | (value > 7)).sum())
            num_all += value.numel()
    assert 0 < large <= 0.011 * num_all + 10
    description = json.loads((tmp_path / "out" / "quant_model_description.json").read_text())
    assert description["model_quant_type"] == description["transformer.h.0.mlp.up_proj.weight"] == "W8A8S"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantize"] == "w8a8s"
    assert len(int8_layers(load_model(tmp_path / "out", device="cpu"))) == 30
    capsys.readouterr()
    for changed, message in (
        ([], "--w-bit 4 --a-bit 8 cannot be made"),
        (["--fraction", "0.02"], "cannot be made"),
        (["--co-sparse", "--act-method", "3"], "sparse weights allow 1 and 2"),
        (["--co-sparse", "--fraction", "2"], "fraction is 2.0"),
        (["--co-sparse", "--is-dynamic"], "have static activations"),
    ):
        assert main([*words[:5], str(tmp_path / "no"), *words[6:], *changed]) in (1, 2)
        assert message in capsys.readouterr().err
    assert main([*words[:5], str(tmp_path / "no"), "--w-bit", "8", "--fraction", "0.1"]) == 2
    assert "--fraction is of sparse weights" in capsys.readouterr().err


def test_options_arrive(tmp_path: Path) -> None:
    words = ["quantize", "run", "demo", str(tmp_path / "out"), "--method", "w8a8", "--is-dynamic", "True"]
    words += [
        "--calib-texts",
        "<_user>你是谁？<_bot>",
        "--disable-names",
        "transformer.h.0.self_attention.query",
    ]
    assert main([*words, "--part-file-size", "0.001"]) == 0
    description = json.loads((tmp_path / "out" / "quant_model_description.json").read_text())
    assert description["transformer.h.0.self_attention.query.weight"] == "FLOAT"
    assert description["transformer.h.0.self_attention.dense.weight"] == "W8A8_DYNAMIC"
    assert len(list((tmp_path / "out").glob("*-of-*.safetensors"))) > 1


@pytest.mark.parametrize("is_dynamic", [True, False])
def test_a_loaded_model_is_neither_saved_nor_rounded_again(is_dynamic: bool, tmp_path: Path) -> None:
    out = int8(plain_folder(tmp_path / "plain"), tmp_path / "out", is_dynamic=is_dynamic)
    model = load_model(out, device="cpu")
    before = model(HELD_OUT)
    with pytest.raises(CheckpointError, match=r"cannot be saved: the activations of .* are int8"):
        save_model(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(ConfigError, match="quantised already"):
        telechat.quantize(model, tmp_path / "again")
    assert torch.equal(model(HELD_OUT), before)
