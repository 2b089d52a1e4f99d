"""MindFormers' run files with values of other shapes than they should have: an error that names them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from tests.sections import with_value

from telechat.errors import ConfigError
from telechat.train.mindformers import translate

WHOLE = yaml.safe_load("""
seed: 7
output_dir: ./output
load_checkpoint: ''
processor: {tokenizer: {vocab_file: tokenizer.model}}
runner_config: {epochs: 2, batch_size: 1}
optimizer: {betas: [0.9, 0.95], eps: 1.e-8}
lr_schedule: {type: CosineWithWarmUpLR, learning_rate: 1.5e-4, warmup_ratio: 0.02}
train_dataset: {data_loader: {dataset_dir: train.mindrecord}}
parallel: {enable_parallel_optimizer: True}
parallel_config: {model_parallel: 2, pipeline_stage: 2}
recompute_config: {recompute: True, select_recompute: False}
runner_wrapper: {use_clip_grad: True}
moe_config: {aux_loss_factors: [0.01]}
callbacks: [{type: CheckpointMonitor, save_checkpoint_steps: 10}]
model:
  model_config:
    compute_dtype: bfloat16
    offset: [1, -1]
    pet_config: {target_modules: '.*wq'}
""")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("moe_config.aux_loss_factors", "0.01", "is '0.01'; it must be a list of numbers"),
        ("moe_config.aux_loss_factors", 0.01, "is 0.01; it must be a list of numbers"),
        ("moe_config.aux_loss_factors", ["expert"], r"factors\[0\] is 'expert'; it must be a number"),
        ("optimizer.betas", "adamw", "is 'adamw'; it must be a list of numbers"),
        ("optimizer.betas", [0.9], "it must be two numbers"),
        ("parallel_config", [8, 2], r"parallel_config is \[8, 2\]; it must be a section"),
        ("parallel_config", "dp8", "parallel_config is 'dp8'; it must be a section"),
        ("parallel", True, "parallel is True; it must be a section"),
        ("train_dataset.data_loader", ["a"], r"train_dataset.data_loader is \['a'\]; it must be a section"),
        ("model.model_config.pet_config", "lora", "pet_config is 'lora'; it must be a section"),
        ("parallel.enable_parallel_optimizer", "False", "is 'False'; it must be true or false"),
        ("recompute_config.recompute", "no", "is 'no'; it must be true or false"),
        ("runner_wrapper.use_clip_grad", 0.5, "is 0.5; it must be true or false"),
        ("callbacks", {"type": "CheckpointMonitor"}, "it must be a list of sections"),
        ("callbacks", ["CheckpointMonitor"], "it must be a list of sections"),
        (
            "callbacks",
            [{"type": "CheckpointMonitor", "save_checkpoint_steps": "often"}],
            "callbacks.save_checkpoint_steps is 'often'; it must be a whole number",
        ),
        ("seed", "seven", "seed is 'seven'; it must be a whole number"),
        ("load_checkpoint", ["a.ckpt"], r"is \['a.ckpt'\]; it must be a text"),
        ("processor.tokenizer.vocab_file", 1, "is 1; it must be a text"),
        ("train_dataset.data_loader.dataset_dir", ["a", "b"], "it must be a text"),
        ("output_dir", {"name": "x"}, "it must be a text"),
        ("model.model_config.offset", "auto", "offset is 'auto'; it must be 0, or a list"),
        ("model.model_config.compute_dtype", "bf16", "it must be one of bfloat16, float16, float32"),
        ("model.model_config.pet_config.target_modules", ["wq"], "it must be a text"),
        ("lr_schedule.type", "PolynomialWithWarmUpLR", "it must be a schedule of the kind cosine, linear"),
        ("lr_schedule.type", "CosineWithRestartsAndWarmUpLR", "a schedule of the kind cosine, linear"),
    ],
)
def test_a_value_of_another_shape_is_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        translate(with_value(WHOLE, key, value), "finetune.yaml")
    assert caught.value.message.startswith("finetune.yaml: ") and caught.value.hint


def test_the_whole_file_is_read() -> None:
    recipe = translate(WHOLE, "finetune.yaml").recipe
    assert recipe["model"]["moe"] == {"aux_loss_factor": 0.01}
    assert recipe["optimizer"]["betas"] == [0.9, 0.95] and recipe["output"]["save_every"] == 10
    assert recipe["parallel"]["pp_offset"] == [1, -1] and recipe["lora"]["targets"] == ["query"]


def test_numbers_in_quotes_are_numbers() -> None:
    assert (
        translate(with_value(WHOLE, "parallel_config.model_parallel", "4"), "x").recipe["parallel"]["tp"] == 4
    )
    assert translate(with_value(WHOLE, "seed", "11"), "x").recipe["seed"] == 11


@pytest.mark.parametrize(
    ("key", "value", "recompute"),
    [
        ("recompute", [3, 0], "full"),
        ("recompute", [0, 0], "none"),
        ("recompute", False, "none"),
        ("recompute", None, "none"),
        ("select_recompute", ["feed_forward.mul"], "selective"),
    ],
)
def test_recomputation_by_layers(key: str, value: Any, recompute: str) -> None:
    section = {"recompute": False, "select_recompute": False, key: value}
    assert translate(with_value(WHOLE, "recompute_config", section), "x").recipe["recompute"] == recompute


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ConstantWarmUpLR", "constant"), ("LinearWithWarmUpLR", "linear"), ("CosineAnnealingLR", "cosine")],
)
def test_schedules_of_other_kinds(kind: str, name: str) -> None:
    assert translate(with_value(WHOLE, "lr_schedule.type", kind), "x").recipe["schedule"]["name"] == name


def test_sections_without_content_are_none() -> None:
    for key in ("moe_config", "callbacks", "processor", "recompute_config", "model.model_config.pet_config"):
        recipe = translate(with_value(WHOLE, key, None), "x").recipe
        assert recipe["optimizer"]["lr"] == 1.5e-4, key
    assert "lora" not in recipe
