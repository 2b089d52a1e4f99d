"""MindFormers' `predict_*.yaml`: what is read of it, what is told as ignored, and values of a wrong kind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.sections import with_value

from telechat.checkpoint.mindspore.predict_config import PredictConfig, read_predict_config
from telechat.checkpoint.mindspore.run_config import read_run_config
from telechat.errors import ConfigError

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "n_kv_heads": 1,
    "intermediate_size": 48, "seq_length": 256, "max_position_embedding": 1024, "rms_norm_eps": 1e-5,
    "pad_token_id": -1, "extend_method": "PI", "scaling_factor": 2, "theta": 10000, "rotary_dtype": "float32",
}  # fmt: skip
FILE: dict[str, Any] = {
    "run_mode": "predict",
    "load_checkpoint": "a.ckpt",
    "model": {"model_config": {**SIZES, "block_size": 16, "num_blocks": "20", "max_decode_length": 64}},
    "moe_config": {"expert_num": 4, "num_experts_chosen": 2},
    "processor": {"tokenizer": {"vocab_file": "tokenizer.model"}},
}


def written(path: Path, raw: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def test_everything_that_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "predict.yaml", FILE)
    assert read_predict_config(path) == PredictConfig(
        checkpoint=Path("a.ckpt"),
        tokenizer=Path("tokenizer.model"),
        generation={"max_length": 64},
        max_model_len=256,
        block_size=16,
        num_blocks=20,
        ignored=("run_mode",),
    )
    model = read_run_config(path)
    assert (model["n_layer"], model["num_key_value_heads"], "pad_token_id" in model) == (2, 1, False)
    assert model["telechat_rope"] == {
        "base": 10000.0, "scheme": "pi", "factor": 2.0, "table_dtype": "float32",
    }  # fmt: skip
    assert model["moe_config"] == {"expert_num": 4, "num_experts_chosen": 2}


def test_what_is_ignored_is_told_key_by_key(tmp_path: Path) -> None:
    raw = copy.deepcopy(FILE)
    raw["model"]["arch"] = {"type": "ParallelTelechatForCausalLM"}
    raw["model"]["model_config"] |= {"use_past": True, "max_decod_length": 9}
    raw["moe_config"]["capacity_factor"] = 1.5
    raw["processor"]["tokenizer"]["bos_token"] = "<_start>"
    raw["parallel_config"] = {"model_parallel": 2}
    del raw["model"]["model_config"]["max_decode_length"]
    assert set(read_predict_config(written(tmp_path / "predict.yaml", raw)).ignored) == {
        "run_mode",
        "model.arch",
        "model.model_config.use_past",
        "model.model_config.max_decod_length (did you mean model.model_config.max_decode_length?)",
        "moe_config.capacity_factor",
        "processor.tokenizer.bos_token",
        "parallel_config",
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("load_checkpoint", 7, "load_checkpoint is 7; it must be a text"),
        ("processor", ["tokenizer.model"], "it must be a section"),
        ("processor.tokenizer", "tokenizer.model", "it must be a section"),
        ("processor.tokenizer.vocab_file", ["a"], "it must be a text"),
        ("model.model_config.seq_length", "long", "it must be a whole number"),
        ("model.model_config.block_size", 0, "it must be a positive integer"),
        ("model.model_config.num_blocks", True, "it must be a whole number"),
    ],
)
def test_answering_refuses(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_predict_config(written(tmp_path / "predict.yaml", with_value(FILE, key, value)))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.model_config.max_position_embedding", "8K", "is '8K'; it must be a whole number"),
        ("model.model_config.theta", [1e4], "it must be a number"),
        ("model.model_config.scaling_factor", {"factor": 2}, "it must be a number"),
        ("model.model_config.extend_method", 2, "it must be a text"),
        ("model.model_config.extend_method", "YARN", "'YARN'; known are None, NTK, DYNAMIC_NTK and PI"),
        ("moe_config", [4], "it must be a section"),
        ("moe_config.expert_num", "four", "it must be a whole number"),
        ("model.model_config.num_heads", None, "lacks num_heads"),
    ],
)
def test_sizes_refuse(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_run_config(written(tmp_path / "predict.yaml", with_value(FILE, key, value)))
