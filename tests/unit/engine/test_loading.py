"""What `auto` means for the dtype of an engine's model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from telechat.checkpoint import load_model, save_model
from telechat.device import CPU
from telechat.engine import LLM, loading
from telechat.engine.loading import auto_dtype, expected_executor
from telechat.ops.cpu import library


@pytest.fixture
def stored(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in bf16 that counts as large; the processor has no instructions for bf16."""
    monkeypatch.setattr(loading, "_SMALL_MODEL_PARAMETERS", 0)
    monkeypatch.setattr("telechat.checkpoint.loader.supports_bfloat16", lambda device: False)
    shutil.copytree(tiny_model_folder, tmp_path / "stored")
    save_model(load_model(tiny_model_folder, device="cpu"), tmp_path / "stored", dtype=torch.bfloat16)
    return tmp_path / "stored"


def test_bf16_stays_bf16_where_our_kernels_multiply_it(stored: Path) -> None:
    if library.obstacle():
        pytest.skip(f"no CPU kernels: {library.obstacle()}")
    llm = LLM(stored, device="cpu")
    assert llm.model.dtype == torch.bfloat16
    assert llm.executor.describe().startswith("CPU kernels")
    assert expected_executor(stored, device="cpu") == "CPU kernels on cpu, bfloat16"
    assert LLM(stored, device="cpu", dtype="float32").model.dtype == torch.float32


def test_without_kernels_it_becomes_fp32(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "obstacle", lambda: "none here")
    assert auto_dtype(stored, CPU) == torch.float32
    assert load_model(stored, device="cpu").dtype == torch.float32  # torch's modules run it


def test_other_dtypes_and_small_models_become_fp32(
    stored: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert auto_dtype(tiny_model_folder, CPU) == torch.float32
    save_model(load_model(tiny_model_folder, device="cpu"), stored, dtype=torch.float16)
    assert auto_dtype(stored, CPU) == torch.float32
    save_model(load_model(tiny_model_folder, device="cpu"), stored, dtype=torch.bfloat16)
    monkeypatch.setattr(loading, "_SMALL_MODEL_PARAMETERS", 10**9)
    assert auto_dtype(stored, CPU) == torch.float32


def test_a_quantised_folder_is_loaded_as_before(stored: Path) -> None:
    raw = json.loads((stored / "config.json").read_text("utf-8"))
    raw["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (stored / "config.json").write_text(json.dumps(raw), "utf-8")
    assert auto_dtype(stored, CPU) == torch.float32
