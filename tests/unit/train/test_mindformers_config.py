"""MindFormers' finetune_*.yaml drives `telechat train`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from telechat.cli.main import main
from telechat.cli.train import recipe_of
from telechat.config import load_config
from telechat.errors import ConfigError
from telechat.train.config import TrainConfig
from telechat.train.mindformers import is_run_config, translate

ROWS = Path(__file__).resolve().parents[3] / "recipes" / "data" / "bookshop-held-out.jsonl"
FINETUNE = """
seed: 7
run_mode: finetune
output_dir: './output'
load_checkpoint: ''
context: {mode: 0}
runner_config: {epochs: 10, batch_size: 1, sink_mode: True}
optimizer: {type: AdamW, betas: [0.9, 0.95], eps: 1.e-8, weight_decay: 0.1}
lr_schedule:
  {type: CosineWithWarmUpLR, learning_rate: 1.5e-4, lr_end: 1.5e-5, warmup_ratio: 0.02, total_steps: -1}
train_dataset:
  data_loader: {type: MindDataset, dataset_dir: 'train.mindrecord'}
parallel: {enable_parallel_optimizer: True}
parallel_config: {data_parallel: 8, model_parallel: 2, pipeline_stage: 1, micro_batch_num: 2}
recompute_config: {recompute: True}
runner_wrapper: {use_clip_grad: True}
callbacks:
  - {type: MFLossMonitor}
  - {type: CheckpointMonitor, save_checkpoint_steps: 1500, keep_checkpoint_max: 300}
model:
  model_config:
    seq_length: 8192
    compute_dtype: bfloat16
    pet_config: {pet_type: lora, lora_rank: 4, lora_alpha: 8, target_modules: '.*wq|.*wk_v|.*wo'}
"""


def raw(**changes: object) -> dict:
    return {**yaml.safe_load(FINETUNE), **changes}


def test_what_is_mapped() -> None:
    found = translate(raw(), "finetune.yaml")
    assert found.ignored == ("run_mode", "context")
    recipe = found.recipe
    assert recipe["data"] == {"max_length": 8192, "train_file": "train.mindrecord"}
    assert recipe["batch"] == {"tokens_per_step": 16 * 8192, "micro_batches": 16, "packing": True}
    assert recipe["optimizer"]["lr"] == 1.5e-4 and recipe["optimizer"]["max_grad_norm"] == 1.0
    assert recipe["schedule"] == {
        "name": "cosine", "epochs": 10.0, "end_factor": pytest.approx(0.1), "warmup_fraction": 0.02,
    }  # fmt: skip
    assert recipe["parallel"] == {"tp": 2, "pp": 1, "cp": 1, "ep": 1, "zero_stage": 1}
    assert recipe["output"] == {"folder": "./output", "save_every": 1500, "keep_last": 300}
    assert (recipe["precision"], recipe["recompute"], recipe["seed"]) == ("bf16", "full", 7)
    assert recipe["lora"]["targets"] == ["query", "key_value", "dense"]
    assert (recipe["lora"]["rank"], recipe["lora"]["alpha"]) == (4, 8.0)


def test_refusals() -> None:
    assert not is_run_config({"model": {"start_from": "demo"}})
    with pytest.raises(ConfigError, match="learning_rate"):
        translate(raw(lr_schedule={}), "x.yaml")
    changed = raw(pet_config={"target_modules": ".*w9"})
    del changed["model"]["model_config"]["pet_config"]
    with pytest.raises(ConfigError, match="w9"):
        translate(changed, "x.yaml")


def test_flags_win_and_gaps_are_named(tmp_path: Path) -> None:
    path = tmp_path / "finetune_telechat_7b.yaml"
    path.write_text(FINETUNE)
    recipe = recipe_of(path)
    with pytest.raises(ConfigError, match=r"model\.start_from"):
        load_config(TrainConfig, recipe, {})
    config = load_config(TrainConfig, recipe, {"model.start_from": "demo", "optimizer.lr": "1e-3"})
    assert config.model.start_from == "demo" and config.optimizer.lr == 1e-3
    assert config.lora is not None and config.lora.targets == ("query", "key_value", "dense")
    own = tmp_path / "recipe.yaml"
    own.write_text("model: {start_from: demo}")
    assert recipe_of(own) == own


def test_the_verb_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "finetune_telechat_7b.yaml"
    path.write_text(FINETUNE.replace("model_parallel: 2", "model_parallel: 1"))
    changes = {
        "--model.start-from": "demo", "--data.train-file": ROWS, "--data.max-length": 256,
        "--batch.tokens-per-step": 2048, "--batch.micro-batches": 1,
    }  # fmt: skip
    words = [str(word) for pair in changes.items() for word in pair]
    assert main(["train", "--config", str(path), "--dry-run", *words]) == 0
    assert "rank: 4" in capsys.readouterr().out
