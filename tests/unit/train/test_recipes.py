"""The recipes of documented runs: values are those of the documents, layouts fit the models."""

from __future__ import annotations

import logging
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.deploy.command_lines import parse_command

from telechat.cli.main import main
from telechat.config import load_config, to_mapping
from telechat.errors import ConfigError
from telechat.models import PRESETS, count_parameters, parameter_table
from telechat.train.config import ModelSection, MoeSection, RopeSection, TrainConfig
from telechat.train.distributed.division import Division
from telechat.train.distributed.stages import layer_counts
from telechat.train.setup import known_config

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "recipes"
# There on every machine, as the files that the recipes name are not.
ROWS = ["--train-dataset", str(FOLDER / "data" / "bookshop.jsonl")]
OURS = {"demo", "demo-2", "sft", "lora", "preference"}

# The first TeleChat's trainer: its README, and its shell scripts.
TELECHAT1 = {
    "model.start_from": "Tele-AI/Telechat-7B",
    "data.mode": "official",
    "data.official.num_samples": 1000,
    "data.official.num_workers": 10,
    "data.official.with_loss_mask": True,
    "rows": 1,
    "optimizer.name": "adamw",
    "optimizer.betas": [0.9, 0.95],
    "optimizer.eps": 1e-5,
    "optimizer.max_grad_norm": 1.0,
    "schedule.name": "cosine",
    "schedule.epochs": 1,
    "schedule.total_steps": None,
    "schedule.warmup_steps": None,
    "schedule.warmup_fraction": 0.1,
    "schedule.end_factor": 0,
    "parallel.zero_stage": 3,
    "parallel.offload": False,
    "recompute": "full",
}
README = TELECHAT1 | {
    "data.max_length": 2048,
    "accumulated": 8,
    "optimizer.lr": 2e-5,
    "optimizer.weight_decay": 0.0,
    "seed": 1233,
}
SCRIPT = TELECHAT1 | {
    "data.max_length": 4096,
    "accumulated": 4,
    "optimizer.lr": 3e-5,
    "optimizer.weight_decay": 1e-4,
    "output.save_every": 100,
    "seed": 42,
}
# TeleChat2's script on Hugging Face's Trainer.
TELECHAT2 = {
    "model.start_from": "TeleAI/TeleChat2-7B",
    "data.max_length": 4096,
    "data.mode": "official",
    "rows": 1,
    "accumulated": 4,
    "optimizer.name": "adamw",
    "optimizer.lr": 3e-5,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.0,
    "optimizer.max_grad_norm": 1.0,
    "schedule.name": "cosine",
    "schedule.epochs": 1,
    "schedule.warmup_fraction": 0.05,
    "schedule.end_factor": 0,
    "output.log_every": 10,
    "output.save_every": 100,
    "output.keep_last": 1,
    "parallel.zero_stage": 2,
    "parallel.offload": True,
    "precision": "fp16",
    "recompute": "full",
    "seed": 42,
}
# MindFormers' YAML files; data_parallel is dp times ep here.
MINDFORMERS = {
    "data.max_length": 8192,
    "data.loss_on": "answers",
    "rows": 1,
    "optimizer.name": "adamw",
    "optimizer.lr": 1.5e-4,
    "optimizer.betas": [0.9, 0.95],
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.1,
    "optimizer.max_grad_norm": 1.0,
    "schedule.name": "cosine",
    "schedule.epochs": 10,
    "schedule.total_steps": None,
    "schedule.warmup_steps": 0,
    "final_lr": 1.5e-5,
    "output.save_every": 1500,
    "output.keep_last": 300,
    "precision": "bf16",
    "recompute": "full",
}
LORA = {
    "lora.rank": 8,
    "lora.alpha": 16,
    "lora.dropout": 0.0,
    "lora.targets": ["query", "key_value", "dense"],
    "lora.mode": "default",
}
SMALL = MINDFORMERS | {"model.start_from": "TeleAI/TeleChat2-7B", "axes": (8, 1, 1, 1, 1), "accumulated": 1}
MIDDLE = MINDFORMERS | {
    "model.start_from": "TeleAI/TeleChat2-35B",
    "axes": (1, 4, 4, 1, 1),
    "parallel.pp_offset": [-1, 1, 1, -1],
    "layers": [[15, 17, 17, 15]],
    "accumulated": 32,
}
LARGE = MINDFORMERS | {
    "model.start_from": "TeleAI/TeleChat2-115B",
    "axes": (1, 8, 8, 1, 1),
    "parallel.pp_interleave": 3,
    "parallel.pp_offset": [
        [-1, -1, 0, 0, 0, 0, 0, 0],
        [-1, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 1, -1],
    ],
    "layers": [[3, 3, 4, 4, 4, 4, 4, 4], [3, 4, 4, 4, 4, 4, 4, 4], [4, 4, 4, 5, 5, 5, 5, 3]],
    "accumulated": 8,
    "recompute": "selective",
}
MIXTURE = MINDFORMERS | {
    "model.start_from": "TeleAI/TeleChat2-39B-A12B",
    "model.moe.capacity_factor": 1.2,
    "model.moe.aux_loss_factor": 0.01,
    "axes": (128, 4, 2, 1, 2),
    "layers": [[15, 15]],
    "accumulated": 4,
    "optimizer.lr": 3e-4,
    "schedule.epochs": 1,
    "schedule.total_steps": 1_000_000,
    "schedule.warmup_steps": 2000,
    "output.save_every": 1600,
    "output.keep_last": 4,
    "recompute": "selective",
}
LONG = SMALL | {"model.rope.scheme": "ntk-static"}
FIRST = MINDFORMERS | {
    "axes": (8, 1, 1, 1, 1),
    "rows": 4,
    "accumulated": 1,
    "optimizer.lr": 1e-5,
    "optimizer.weight_decay": 0.0,
    "schedule.epochs": 2,
    "final_lr": 0,
    "output.save_every": 100,
    "output.keep_last": 2,
}

# Recipe -> what its documents say. `rows`: of a micro batch of one device; `accumulated`: micro batches of a
# step for one device; `axes`: data, tensor, pipeline, context and expert parallel, data counted with experts.
DOCUMENTED: dict[str, dict[str, Any]] = {
    "sft-single-node": README | {"devices": 8},
    "sft-multi-node": README | {"devices": 16},
    "sft-single-node-script": SCRIPT | {"devices": 8},
    "sft-multi-node-script": SCRIPT | {"devices": 16, "data.max_length": 8192},
    "sft-lora": SCRIPT
    | {"devices": 8, "lora.rank": 8, "lora.alpha": 1, "lora.target_regex": r".*self_attention\..*"},
    "telechat2-sft": TELECHAT2 | {"devices": 8},
    "telechat2-lora": TELECHAT2
    | {
        "devices": 8,
        "lora.rank": 64,
        "lora.alpha": 16,
        "lora.dropout": 0.05,
        "lora.targets": ["query", "key_value", "dense", "gate_proj", "up_proj", "down_proj"],
    },
    "telechat2-pretrain": TELECHAT2
    | {
        "devices": 8,
        "data.max_length": 1024,
        "data.official.group_texts": False,
        "accumulated": 1,
        "optimizer.lr": 1e-5,
        "schedule.warmup_fraction": 0.1,
        "seed": 1234,
    },
    "mindformers-7b": SMALL,
    "mindformers-35b": MIDDLE,
    "mindformers-115b": LARGE,
    "mindformers-39b-a12b": MIXTURE,
    "mindformers-lora-7b": SMALL | LORA,
    "mindformers-lora-35b": MIDDLE | LORA,
    "mindformers-lora-115b": LARGE | LORA,
    "mindformers-7b-32k": LONG
    | {
        "axes": (8, 2, 1, 1, 1),
        "data.max_length": 32768,
        "model.rope.training_length": 32768,
        "model.rope.theta": 1e6,
    },
    "mindformers-7b-256k": LONG
    | {
        "axes": (1, 2, 1, 8, 1),
        "data.max_length": 262144,
        "model.rope.training_length": 262144,
        "model.rope.theta": 4e7,
    },
    "mindformers-telechat-7b": FIRST | {"model.start_from": "Tele-AI/Telechat-7B", "data.max_length": 2048},
    "mindformers-telechat-12b": FIRST
    | {"model.start_from": "TeleAI/TeleChat-12B-v2", "data.max_length": 1024, "precision": "fp16"},
}


def load(name: str) -> TrainConfig:
    """A recipe by name."""
    return load_config(TrainConfig, FOLDER / f"{name}.yaml")


def test_every_recipe_is_in_the_table() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == OURS | DOCUMENTED.keys()


@pytest.mark.parametrize("name", DOCUMENTED)
def test_values_are_the_documented_ones(name: str) -> None:
    config, values = load(name), to_mapping(load(name))
    facts = dict(DOCUMENTED[name])
    for derived in ("rows", "accumulated", "axes", "devices", "layers", "final_lr"):
        facts.pop(derived, None)
    for key, expected in facts.items():
        found: Any = values
        for part in key.split("."):
            found = found[part]
        assert found == expected, key
    assert config.output.folder == f"runs/{name}"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_step_shows_the_documented_rows(name: str) -> None:
    config, facts = load(name), DOCUMENTED[name]
    data_ranks = facts["axes"][0] if "axes" in facts else facts["devices"]
    assert config.batch.packing  # so a micro batch has the same rows each time
    assert config.batch.micro_batches == data_ranks * facts["accumulated"]
    per_batch = config.batch.tokens_per_step // config.batch.micro_batches
    assert per_batch == facts["rows"] * config.data.max_length
    if "final_lr" in facts:
        assert math.isclose(config.optimizer.lr * config.schedule.end_factor, facts["final_lr"])


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_recipe_dry_runs_with_its_true_layout(
    name: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config, facts = load(name), DOCUMENTED[name]
    words = list(ROWS)
    if "axes" in facts:
        data, tp, pp, cp, ep = facts["axes"]
        devices = data * tp * pp * cp
        layout = config.parallel.for_world(devices)
        assert (config.parallel.dp, layout.tp, layout.pp, layout.cp, layout.ep) == (
            data // ep,
            tp,
            pp,
            cp,
            ep,
        )
    else:
        devices = facts["devices"]
        layout = config.parallel.for_world(devices)
        words += ["--parallel.dp", str(devices)]
    with caplog.at_level(logging.INFO):
        assert main(["train", "--config", str(FOLDER / f"{name}.yaml"), "--dry-run", *words]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["parallel"]["dp"] == layout.dp
    assert f"= {devices}\n" in caplog.text
    model = known_config(config.model)
    assert model is not None
    assert f"{count_parameters(model):,} parameters" in caplog.text
    if "layers" in facts:
        assert layer_counts(model.num_layers, layout) == facts["layers"]
        assert " / ".join(map(str, facts["layers"])) in caplog.text


@pytest.mark.parametrize("name", ["mindformers-35b", "mindformers-115b", "mindformers-7b-256k"])
def test_all_processes_together_hold_the_model_once(name: str) -> None:
    config = load(name)
    model = known_config(config.model)
    assert model is not None
    data, tp, pp, cp, _ = DOCUMENTED[name]["axes"]
    layout = config.parallel.for_world(data * tp * pp * cp)
    division = Division(model, layout, {entry.name: entry.shape for entry in parameter_table(model)})
    held = 0.0
    for rank in range(layout.world_size):
        for cut in division.held(rank).values():
            held += math.prod(cut.sizes) / division.num_copies(cut)
    assert held == pytest.approx(count_parameters(model), abs=0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mindformers-115b", "--parallel.tp", "48"], "48"),
        (["mindformers-35b", "--parallel.pp", "8"], "pp_offset"),
        (["mindformers-39b-a12b", "--parallel.ep", "3", "--batch.micro-batches", "384"], "16 experts"),
        (["mindformers-7b", "--parallel.ep", "2", "--parallel.dp", "4"], "no experts"),
        (["mindformers-7b", "--batch.micro-batches", "12"], "12"),
        (["mindformers-7b", "--batch.micro-batches", "16"], "one row has 8192"),
        (["mindformers-7b-32k", "--model.rope.training-length", "16384"], "trained at up to 16384"),
        (["mindformers-7b-256k", "--neftune-alpha", "5"], "neftune_alpha"),
    ],
)
def test_a_dry_run_refuses_what_the_start_would(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *flags = words
    assert main(["train", "--config", str(FOLDER / f"{name}.yaml"), "--dry-run", *flags]) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("field", ["data.train_file", "evaluation.file"])
def test_a_dry_run_refuses_a_file_that_is_not_there(
    field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flag, missing = "--" + field.replace("_", "-"), tmp_path / "none.jsonl"
    recipe = str(FOLDER / "mindformers-7b.yaml")
    words = ["train", "--config", recipe, "--dry-run", *ROWS, "--parallel.dp", "8"]
    assert main([*words, flag, str(missing)]) == 1
    said = capsys.readouterr().err
    assert f"{field}: There is no training file {missing}." in said and f"name another with {flag}" in said
    mixing = tmp_path / "mixing.json"
    mixing.write_text(f'{{"{missing}": 1.0}}')
    assert main([*words, flag, str(mixing)]) == 1
    assert f"There is no training file {missing}. Correct the path in {mixing}." in capsys.readouterr().err
    missing.write_text("")
    assert main([*words, flag, str(mixing)]) == 0


def test_a_model_that_only_a_hub_knows_is_not_checked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [*ROWS, "--model.start-from", "someone/model", "--parallel.tp", "3"]
    with caplog.at_level(logging.INFO):
        assert main(["train", "--config", str(FOLDER / "mindformers-7b.yaml"), "--dry-run", *words]) == 0
    assert "someone/model is not on this machine" in caplog.text


def test_a_hub_id_of_a_published_size_stands_for_it() -> None:
    rope = RopeSection(theta=5.0)
    found = known_config(ModelSection(start_from="modelscope:TeleAI/TeleChat2-35B", rope=rope))
    assert found is not None and found.rope.base == 5.0
    assert found.num_layers == PRESETS["telechat2-35b"].num_layers
    assert known_config(ModelSection(start_from="someone/else")) is None
    with pytest.raises(ConfigError, match="no mixture"):
        known_config(ModelSection(start_from="TeleAI/TeleChat2-7B", moe=MoeSection(capacity_factor=1.2)))


PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
COMMANDS = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    args = parse_command(words)
    if words[1] in ("train", "plan"):
        # 1: the plan does not fit the devices named.
        assert main(words[1:]) in ((0,) if words[1] == "train" else (0, 1))
        assert args.config.is_file()


def test_the_page_names_every_recipe_and_its_files_start_as_it_says() -> None:
    for name in DOCUMENTED:
        assert f"recipes/{name}.yaml)" in PAGE, name
        lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        words = shlex.split(lines[2].removeprefix("# Start: ").replace("--node-rank K", "--node-rank 0"))
        args = parse_command(words)
        assert args.words[:3] == ["train", "--config", f"recipes/{name}.yaml"]
        if args.nproc_per_node is not None:
            facts = DOCUMENTED[name]
            axes = facts.get("axes", (facts.get("devices"), 1, 1, 1, 1))
            assert (args.nnodes or 1) * args.nproc_per_node == math.prod(axes[:4])
