"""MindFormers' finetune_*.yaml drives `telechat train`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from telechat.cli.main import main
from telechat.cli.train import recipe_of
from telechat.config import from_mapping, load_config
from telechat.errors import ConfigError
from telechat.run_file import is_run_file
from telechat.train.config import TrainConfig
from telechat.train.mindformers import translate

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
    assert found.ignored == (
        "context", "runner_config.sink_mode", "optimizer.type", "train_dataset.data_loader.type",
    )  # fmt: skip
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


def test_a_long_context_and_many_ranks() -> None:
    changed = raw(moe_config={"expert_num": 16, "capacity_factor": 1.2, "aux_loss_factors": [0.01]})
    changed["parallel_config"] = {"pipeline_stage": 4, "expert_parallel": 2, "vocab_emb_dp": True}
    changed["recompute_config"] = {"recompute": False, "select_recompute": True}
    changed["model"]["model_config"] |= {
        "extend_method": "NTK", "theta": 1000000, "pretrain_seqlen": 8192, "training_seqlen": 32768,
        "pp_interleave_num": 2, "offset": [[-1, 1, 1, -1], [0, 0, 0, 0]],
    }  # fmt: skip
    found = translate(changed, "finetune.yaml")
    assert found.recipe["model"] == {
        "rope": {"theta": 1e6, "base_length": 8192, "training_length": 32768},
        "moe": {"capacity_factor": 1.2, "aux_loss_factor": 0.01},
    }
    assert found.recipe["parallel"] == {
        "tp": 1, "pp": 4, "cp": 1, "ep": 2, "zero_stage": 1, "pp_interleave": 2,
        "pp_offset": [[-1, 1, 1, -1], [0, 0, 0, 0]],
    }  # fmt: skip
    assert found.recipe["recompute"] == "selective"
    assert {"parallel_config.vocab_emb_dp", "moe_config.expert_num"} <= set(found.ignored)
    needed = {"model": {"start_from": "demo"}, "data": {"train_file": "x.jsonl"}}
    merged = {key: {**value, **needed.get(key, {})} if isinstance(value, dict) else value
              for key, value in found.recipe.items()}  # fmt: skip
    assert from_mapping(TrainConfig, merged, source="x").parallel.ep == 2


def test_what_has_no_meaning_here_is_told() -> None:
    changed = raw(
        parallel={"ennable_parallel_optimizer": True, "parallel_mode": "STAND_ALONE", "full_batch": False},
        strategy_ckpt_config={"save_file": "x", "only_trainable_params": False},
        context={"ascend_config": {"parallel_speed_up_json_path": "x.json"}},
        use_parallel=True,
    )
    assert set(translate(changed, "x.yaml").ignored) >= {
        "parallel.ennable_parallel_optimizer (did you mean parallel.enable_parallel_optimizer?)",
        "parallel.parallel_mode", "parallel.full_batch", "strategy_ckpt_config", "context", "use_parallel",
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["train", "finetune"])
def test_run_modes_that_train(mode: str) -> None:
    assert "run_mode" not in translate(raw(run_mode=mode), "x.yaml").ignored


def test_special_ids_must_be_the_tokenizers(tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1}
    changed = raw(load_checkpoint="demo")
    changed["model"]["model_config"] |= ids
    path.write_text(yaml.safe_dump(changed))
    assert translate(changed, "x").special_ids == {"bos_token_id": 1, "eos_token_id": 2}
    recipe_of(path, {})
    changed["model"]["model_config"]["eos_token_id"] = 7
    path.write_text(yaml.safe_dump(changed))
    with pytest.raises(ConfigError, match="eos_token_id is 7, but the tokenizer of demo has 2"):
        recipe_of(path, {})


def test_refusals() -> None:
    assert not is_run_file({"model": {"start_from": "demo"}})
    with pytest.raises(ConfigError, match="learning_rate"):
        translate(raw(lr_schedule={}), "x.yaml")
    with pytest.raises(ConfigError, match="run_mode is 'predict'"):
        translate(raw(run_mode="predict"), "x.yaml")
    with pytest.raises(ConfigError, match=r"parallel_config\.model_parallel is 'two'"):
        translate(raw(parallel_config={"model_parallel": "two"}), "x.yaml")
    changed = raw(pet_config={"target_modules": ".*w9"})
    del changed["model"]["model_config"]["pet_config"]
    with pytest.raises(ConfigError, match="w9"):
        translate(changed, "x.yaml")


def test_flags_win_and_gaps_are_named(tmp_path: Path) -> None:
    path = tmp_path / "finetune_telechat_7b.yaml"
    path.write_text(FINETUNE)
    recipe = recipe_of(path, {})
    with pytest.raises(ConfigError, match=r"model\.start_from"):
        load_config(TrainConfig, recipe, {})
    config = load_config(TrainConfig, recipe, {"model.start_from": "demo", "optimizer.lr": "1e-3"})
    assert config.model.start_from == "demo" and config.optimizer.lr == 1e-3
    assert config.lora is not None and config.lora.targets == ("query", "key_value", "dense")
    own = tmp_path / "recipe.yaml"
    own.write_text("model: {start_from: demo}")
    assert recipe_of(own, {}) == own


def test_the_verb_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "finetune_telechat_7b.yaml"
    path.write_text(FINETUNE.replace("model_parallel: 2", "model_parallel: 1"))
    changes = {
        "--model.start-from": "demo", "--train-dataset": ROWS, "--data.max-length": 256,
        "--batch.tokens-per-step": 2048, "--batch.micro-batches": 1,
    }  # fmt: skip
    words = [str(word) for pair in changes.items() for word in pair]
    assert main(["train", "--config", str(path), "--dry-run", *words]) == 0
    assert "rank: 4" in capsys.readouterr().out


def test_flags_of_the_original_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--run_mode`, `--load_checkpoint` and `--register_path`, as `run_mindformer.py` takes them."""
    path = tmp_path / "finetune.yaml"
    path.write_text(yaml.safe_dump(raw(run_mode="predict", load_checkpoint="")), encoding="utf-8")
    assert main(["train", "--config", str(path), "--dry-run"]) == 1
    assert "run_mode is 'predict'" in capsys.readouterr().err
    recipe = yaml.safe_load(
        recipe_of(path, {}, {"run_mode": "finetune", "load_checkpoint": "demo"}).read_text()
    )
    assert recipe["model"]["start_from"] == "demo"

    own = tmp_path / "own.yaml"
    own.write_text("model: {start_from: demo}\n", encoding="utf-8")
    for flag in ("--run_mode", "--load_checkpoint"):
        assert main(["train", "--config", str(own), flag, "finetune"]) == 2
        assert "MindFormers' run files" in capsys.readouterr().err
    words = ["--run_mode", "evaluate", "--register_path", "research/telechat2"]
    assert main(["train", "--config", str(path), *words]) == 1
    said = capsys.readouterr().err
    assert "run_mode is 'evaluate'" in said and "--register-path research/telechat2 has no effect" in said
