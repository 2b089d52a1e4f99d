"""Oracle: adapters in one batch of the engine's executors give peft's logits.

Runs under `make oracles`, which installs peft apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.checkpoint.adapters import ALL_LAYERS, random_adapter
from tests.unit.models.small import SMALL, small_model
from tests.unit.models.test_adapters import EXECUTORS, Adapted

from telechat.checkpoint import AdapterConfig, load_model, read_adapter, save_model, write_adapter
from telechat.layers.rotary import RopeSettings

pytestmark = pytest.mark.oracle

BASE = SMALL.replace(hidden_size=64, rope=RopeSettings(base_length=256, training_length=256))
KINDS = {
    "plain": AdapterConfig(r=4, lora_alpha=8, target_modules=ALL_LAYERS),
    "rslora": AdapterConfig(r=6, lora_alpha=6, target_modules=("query", "up_proj"), use_rslora=True),
    "regex and patterns": AdapterConfig(
        r=4,
        lora_alpha=8,
        target_modules=r".*\.(key_value|dense|down_proj)",
        rank_pattern={"key_value": 2},
        alpha_pattern={r"h\.1\.mlp\.down_proj": 3.0},
    ),
}


@pytest.mark.parametrize("form", ["native", "torch"])
def test_a_batch_of_adapters_has_pefts_logits(form: str, tmp_path: Path) -> None:
    from peft import PeftModel

    from telechat.hf import TelechatForCausalLM

    save_model(small_model(BASE), tmp_path / "model")
    prompt = torch.randint(50, (23,), generator=torch.Generator().manual_seed(1)).tolist()
    base: Any = TelechatForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    expected = {"none": base(torch.tensor([prompt])).logits[0]}
    executor = EXECUTORS[form](load_model(tmp_path / "model", device="cpu", dtype="float32"))
    numbers: dict[str, int | None] = {"none": None}
    for number, (name, settings) in enumerate(KINDS.items()):
        folder = tmp_path / f"adapter-{number}"
        write_adapter(random_adapter(BASE, seed=number, settings=settings, size=0.2), folder, BASE)
        fresh = TelechatForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        expected[name] = PeftModel.from_pretrained(fresh, folder)(torch.tensor([prompt])).logits[0]
        executor.load_adapter(number, read_adapter(folder, BASE).scaled_layers())
        numbers[name] = number
    found = Adapted(executor, numbers).run(dict.fromkeys(expected, prompt))
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits.detach(), rtol=1e-4, atol=1e-4)
        assert name == "none" or (found[name] - found["none"]).abs().max() > 0.1
