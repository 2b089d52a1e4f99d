"""Whole models by GPTQ: better than rounding, one block at a time, resumable, complete or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.checkpoint.folders import random_model, tensors_of, write_config, write_safetensors
from tests.unit.checkpoint.test_streaming import LiveBytes
from tests.unit.quant.quant_models import EXPERTS, PLAIN, TIED, quantised_layers

import telechat
from telechat import QuantizeConfig, load_model
from telechat.checkpoint import check_folder
from telechat.cli.main import main
from telechat.errors import CheckpointError, ConfigError
from telechat.models import TeleChatConfig, TeleChatModel
from telechat.models.executors import choose_executor
from telechat.models.native import native_obstacle
from telechat.ops.cpu import library
from telechat.quant import Calibration, LayerDone, quantize_model
from telechat.quant.blocks import layers_of
from telechat.quant.mixed import Sensitivity, match_bits, spend

ROWS = [torch.randint(96, (24,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(40)]
HELD_OUT = torch.randint(96, (8, 24), generator=torch.Generator().manual_seed(99))


def plain_folder(folder: Path, config: TeleChatConfig = PLAIN, **changes: Any) -> Path:
    tensors = tensors_of(random_model(config))
    for name, change in changes.items():
        change(tensors[name.replace("__", ".")])
    write_config(folder, config)
    write_safetensors(folder, tensors)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def gptq(source: Path, out: Path, **settings: Any) -> Path:
    options = {"bits": 4, "group_size": 32, **settings}
    return telechat.quantize(source, out, QuantizeConfig(method="gptq", **options), examples=ROWS)


@torch.inference_mode()
def damage(model: TeleChatModel, plain: TeleChatModel) -> float:
    """Mean square difference of final hidden states."""
    return float((model.hidden_states(HELD_OUT) - plain.hidden_states(HELD_OUT)).square().mean())


@pytest.mark.parametrize("config", [PLAIN, TIED, EXPERTS], ids=["plain", "tied", "experts"])
def test_less_damage_than_rounding(tmp_path: Path, config: TeleChatConfig) -> None:
    source = plain_folder(tmp_path / "plain", config)
    out = gptq(source, tmp_path / "out")
    model, plain = load_model(out, device="cpu"), load_model(source, device="cpu")
    assert sorted(quantised_layers(model)) == sorted(
        name.removesuffix(".weight") for name in layers_of(config)
    )
    assert model.config == plain.config
    assert damage(model, plain) < 0.6 * damage(quantize_model(random_model(config), 4, 32), plain)
    assert not check_folder(out).problems
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "plain"]


def test_bits_groups_and_order(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain")
    plain = load_model(source, device="cpu")
    found = {}
    for name, settings in {
        "8": {"bits": 8, "group_size": 128},
        "4": {},
        "4 whole": {"group_size": -1},
        "4 asym": {"sym": False},
        "4 act": {"desc_act": True},
        "4 moving": {"desc_act": True, "static_groups": False},
        "4 apart": {"true_sequential": False},
        "4 damp": {"damp_percent": 0.5},
        "2": {"bits": 2},
    }.items():
        out = gptq(source, tmp_path / name, **settings)
        model = load_model(out, device="cpu").eval()
        found[name] = damage(model, plain)
        ordered = any(layer.order is not None for layer in quantised_layers(model).values())
        assert ordered == (name == "4 moving")
        if library.obstacle() is None:
            assert (native_obstacle(model) is None) == (name != "4 moving")
    assert len(set(found.values())) == len(found)  # every setting is obeyed
    assert found["8"] < 0.05 * found["4"] and found["4"] < 0.5 * found["2"]
    assert found["4"] < found["4 whole"]


def test_settings_on_disk(tmp_path: Path) -> None:
    out = gptq(plain_folder(tmp_path / "plain"), tmp_path / "out", desc_act=True)
    settings = json.loads((out / "quantize_config.json").read_text())
    assert settings == json.loads((out / "config.json").read_text())["quantization_config"]
    assert settings == {
        "bits": 4,
        "group_size": 32,
        "damp_percent": 0.01,
        "desc_act": True,
        "static_groups": True,
        "sym": True,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": None,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "lm_head": False,
    }
    stored = load_file(out / "model.safetensors")
    assert stored["transformer.h.0.mlp.down_proj.qweight"].shape == (32, 128)
    assert stored["transformer.h.0.mlp.down_proj.qzeros"].tolist() == [[0x77777777] * 16] * 8
    assert stored["transformer.h.0.mlp.down_proj.scales"].dtype == torch.float16
    report = json.loads((out / "quantize_report.json").read_text())["layers"]
    assert [layer["name"] for layer in report] == list(layers_of(PLAIN))
    assert all(0 < layer["error"] < 0.2 and layer["num_tokens"] == 960 for layer in report)


def test_bits_by_name(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain")
    out = gptq(source, tmp_path / "out", bits_for=(("*.h.0.*", 8), ("*.down_proj", 2)))
    bits = {
        name: layer.scheme.bits for name, layer in quantised_layers(load_model(out, device="cpu")).items()
    }
    assert all(value == 8 for name, value in bits.items() if ".h.0." in name)
    stored = load_file(out / "model.safetensors")
    assert stored["transformer.h.1.mlp.down_proj.qweight"].shape == (256 * 2 // 32, 128)
    assert bits["transformer.h.1.mlp.up_proj"] == 4
    model = load_model(out, device="cpu").eval()
    assert choose_executor(model).describe()
    with pytest.raises(ConfigError, match=r"no layer is called '\*\.lm_head'"):
        match_bits(list(layers_of(PLAIN)), 4, (("*.lm_head", 8),))


def test_bits_by_what_is_lost(tmp_path: Path) -> None:
    """A layer whose weights are hard to round gets the bits."""

    def spoil(weight: torch.Tensor) -> None:
        weight[:, ::32] *= 10

    source = plain_folder(tmp_path / "plain", transformer__h__1__mlp__up_proj__weight=spoil)
    out = gptq(source, tmp_path / "out", average_bits=4.8)
    bits = {
        layer["name"]: layer["bits"]
        for layer in json.loads((out / "quantize_report.json").read_text())["layers"]
    }
    assert 8 in bits.values() and 4 in bits.values()
    assert bits["transformer.h.1.mlp.up_proj.weight"] == 8
    sizes = dict(random_model(PLAIN).named_parameters())
    total = sum(sizes[name].numel() for name in bits)
    assert sum(sizes[name].numel() * value for name, value in bits.items()) <= 4.8 * total
    plain = load_model(source, device="cpu")
    assert damage(load_model(out, device="cpu"), plain) < damage(
        load_model(gptq(source, tmp_path / "even"), device="cpu"), plain
    )


def test_spending() -> None:
    layers = {
        "a": Sensitivity(100, {4: 1.0, 8: 0.1}),
        "b": Sensitivity(100, {4: 0.5, 8: 0.0}),
        "c": Sensitivity(10, {4: 0.2, 8: 0.0}),
    }
    assert spend(layers, 4) == {"a": 4, "b": 4, "c": 4}
    assert spend(layers, 6.1) == {"a": 8, "b": 4, "c": 8}
    assert spend(layers, 8) == {"a": 8, "b": 8, "c": 8}


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain")
    whole = gptq(source, tmp_path / "whole")
    out, config = tmp_path / "out", QuantizeConfig(method="gptq", group_size=32)

    def kill(layer: LayerDone) -> None:
        if layer.name == "transformer.h.1.self_attention.dense.weight":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        telechat.quantize(source, out, config, examples=ROWS, on_layer=kill)
    assert not out.exists() and (tmp_path / "out.unfinished").is_dir()
    with pytest.raises(
        CheckpointError, match=r"out\.unfinished holds an unfinished run that differs in bits"
    ):
        telechat.quantize(source, out, QuantizeConfig(method="gptq", group_size=32, bits=8), examples=ROWS)
    with pytest.raises(CheckpointError, match="differs in calibration"):
        telechat.quantize(source, out, config, examples=ROWS[:5])
    again: list[str] = []
    telechat.quantize(source, out, config, examples=ROWS, on_layer=lambda layer: again.append(layer.name))
    assert again and all(".h.1." in name for name in again)
    first, second = load_file(whole / "model.safetensors"), load_file(out / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (tmp_path / "out.unfinished").exists()


def test_one_block_in_memory(tmp_path: Path) -> None:
    """Three more blocks make the peak no higher."""
    peaks = []
    for num_layers in (2, 5):
        config = PLAIN.replace(num_layers=num_layers, hidden_size=64, ffn_hidden_size=64)
        source = plain_folder(tmp_path / f"plain-{num_layers}", config)
        with LiveBytes() as live:
            telechat.quantize(
                source,
                tmp_path / f"out-{num_layers}",
                QuantizeConfig(method="gptq", group_size=32),
                examples=ROWS[:2],
                max_shard_bytes=20_000,
            )
        peaks.append(live.peak)
    block = sum(value.nbytes for name, value in tensors_of(random_model(config)).items() if ".h.0." in name)
    assert peaks[1] < peaks[0] + 0.5 * block


def test_experts_that_no_token_reaches(tmp_path: Path) -> None:
    """Two tokens reach at most four of the experts' places; the others are rounded, not thrown away."""
    source = plain_folder(tmp_path / "plain", EXPERTS)
    done: list[LayerDone] = []
    out = telechat.quantize(
        source,
        tmp_path / "out",
        QuantizeConfig(method="gptq", bits=8, group_size=32),
        examples=[[5]],
        on_layer=done.append,
    )
    idle = [layer for layer in done if not layer.num_tokens]
    assert idle and all("local_experts" in layer.name for layer in idle)
    layers, plain = quantised_layers(load_model(out, device="cpu")), random_model(EXPERTS)
    for layer in idle:
        weight = plain.get_parameter(layer.name)
        assert torch.allclose(layers[layer.name.removesuffix(".weight")].dequantise(), weight, atol=0.01)


def test_one_sentence_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    telechat.quantize(
        plain_folder(tmp_path / "plain"),
        tmp_path / "out",
        QuantizeConfig(method="gptq", bits=8, group_size=128, desc_act=False),
        examples=[{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}],
    )
    assert "3 calibration tokens for layers of up to 256 inputs are too few" in caplog.text


def poison(weight: torch.Tensor) -> None:
    weight[0, 0] = float("nan")


def test_nothing_half_written(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain", transformer__h__1__mlp__down_proj__weight=poison)
    with pytest.raises(ConfigError, match=r"h\.1\..* (cannot be quantised|not finite)|not finite"):
        gptq(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]


def test_refused(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain")
    config = QuantizeConfig(method="gptq")
    with pytest.raises(ConfigError, match="no calibration rows"):
        telechat.quantize(source, tmp_path / "out", config)
    with pytest.raises(ConfigError, match="examples and texts both say"):
        telechat.quantize(source, tmp_path / "out", config, examples=ROWS, texts=["a"])
    with pytest.raises(ConfigError, match="looks at no calibration rows"):
        telechat.quantize(source, tmp_path / "out", QuantizeConfig(), examples=ROWS)
    with pytest.raises(ConfigError, match="Calibration reads a folder block by block"):
        telechat.quantize(random_model(PLAIN), tmp_path / "out", config, examples=ROWS)
    with pytest.raises(ConfigError, match="the token 96; the model has 96"):
        telechat.quantize(source, tmp_path / "out", config, examples=[[96]])
    odd = plain_folder(tmp_path / "odd", PLAIN.replace(ffn_hidden_size=192))
    with pytest.raises(
        ConfigError, match=r"down_proj\.weight cannot be quantised: its 192 inputs do not divide"
    ):
        telechat.quantize(odd, tmp_path / "out", config, examples=ROWS)
    done = gptq(source, tmp_path / "done")
    with pytest.raises(ConfigError, match="quantised already, to GPTQ, 4 bits in groups of 32"):
        gptq(done, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done", "odd", "plain"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "gptqq"}, "Unknown quantisation method 'gptqq'.*Known: rtn, gptq"),
        ({"bits": 3}, "three bits"),
        ({"group_size": 0}, "group_size is 0"),
        ({"damp_percent": 0.0}, "damp_percent is 0"),
        ({"checkpoint_format": "v3"}, "checkpoint_format is 'v3'"),
        ({"average_bits": 3.0}, "average_bits is 3.0; it must be from 4"),
        ({"average_bits": 5.0, "bits_for": (("*", 8),)}, "both say which layers"),
        ({"bits_for": (("*", 5),)}, "bits is 5"),
        ({"method": "rtn", "desc_act": True}, "desc_act is True, which rounding to nearest does not obey"),
        ({"method": "rtn", "bits": 2}, "bits is 2"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantizeConfig(**{"method": "gptq", **settings})


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input": "你好", "output": "你好！"}\n' * 20 + '{"input": "a", "output": "b"}\n' * 20)
    words = ["quantize", "run", "demo", str(tmp_path / "out"), "--method", "gptq"]
    options = {
        "--bits": "8",
        "--group-size": "64",
        "--calib": str(rows),
        "--calib-rows": "30",
        "--calib-length": "5",
        "--damp": "0.02",
        "--desc-act": "True",
        "--static-groups": "False",
        "--sym": "False",
        "--true-sequential": "False",
        "--checkpoint-format": "gptq_v2",
        "--bits-for": "*.down_proj=4",
        "--layout": "telechat",
    }
    assert main([*words, *(word for pair in options.items() for word in pair)]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "out")
    assert "30 rows, 150 tokens" in printed.err
    assert "h.0.mlp.down_proj: 4 bits, error" in printed.err
    settings = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert settings.pop("dynamic")
    expected = {
        "bits": 8,
        "group_size": 64,
        "damp_percent": 0.02,
        "desc_act": True,
        "static_groups": False,
        "sym": False,
        "true_sequential": False,
        "checkpoint_format": "gptq_v2",
    }
    assert expected.items() <= settings.items()
    assert main(["quantize", "run", "demo", str(tmp_path / "no"), "--method", "gptq"]) == 1
    assert "no calibration rows" in capsys.readouterr().err
    assert main([*words, "--bits-for", "down"]) == 2
    assert main([*words, "--calib", str(rows), "--average-bits", "9"]) == 1
    assert "average_bits is 9.0" in capsys.readouterr().err


def test_a_damaged_unfinished_run(tmp_path: Path) -> None:
    """State that cannot be read is another run's; without state there is nothing to go on with."""
    source = plain_folder(tmp_path / "plain")
    left = tmp_path / "out.unfinished"
    left.mkdir()
    save_file({"a": torch.zeros(1)}, left / "block-00000.safetensors")
    (left / "block-00000.json").write_text("[]")
    (left / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="holds an unfinished run"):
        gptq(source, tmp_path / "out")
    (left / "state.json").unlink()
    assert gptq(source, tmp_path / "out").is_dir()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "out.unfinished" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(CheckpointError, match=r"is in the way: it holds notes\.txt"):
        gptq(plain_folder(tmp_path / "plain"), tmp_path / "out")
    assert notes.read_text() == "mine"


def test_calibration_is_given_once(tmp_path: Path) -> None:
    rows = Calibration(tuple(tuple(row) for row in ROWS))
    source = plain_folder(tmp_path / "plain")
    config = QuantizeConfig(method="gptq", group_size=32)
    one = telechat.quantize(source, tmp_path / "one", config, calibration=rows)
    two = gptq(source, tmp_path / "two")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
