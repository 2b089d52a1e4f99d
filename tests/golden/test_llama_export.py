"""Stock transformers runs a converted folder: same logits as our model, for every generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.golden.test_llama_oracle import ATOL, GENERATIONS, prompts, random_model

from telechat import load_model
from telechat.checkpoint import save_model
from telechat.cli.main import main

transformers = pytest.importorskip("transformers", reason="the independent Llama is in transformers")


def export(tmp_path: Path, name: str, *options: str) -> Path:
    model = random_model(GENERATIONS[name])
    save_model(model, tmp_path / "model")
    target = tmp_path / "llama"
    assert (
        main(["checkpoint", "convert", str(tmp_path / "model"), str(target), "--to", "llama", *options]) == 0
    )
    return target


@pytest.mark.parametrize("name", GENERATIONS)
@torch.no_grad()
def test_logits(name: str, tmp_path: Path) -> None:
    target = export(tmp_path, name)
    llama = transformers.AutoModelForCausalLM.from_pretrained(target).eval()
    assert type(llama).__name__ == "LlamaForCausalLM"
    model = load_model(tmp_path / "model", device="cpu")
    input_ids = prompts(model.config, 40)
    torch.testing.assert_close(llama(input_ids).logits, model(input_ids), atol=ATOL, rtol=0)


@torch.no_grad()
def test_length_beyond_the_trained_one(tmp_path: Path) -> None:
    """`--length` fixes base and attention scaling for prompts that long."""
    target = export(tmp_path, "telechat2-115b", "--length", "150")
    llama = transformers.AutoModelForCausalLM.from_pretrained(target).eval()
    model = load_model(tmp_path / "model", device="cpu")
    input_ids = prompts(model.config, 150)
    torch.testing.assert_close(llama(input_ids).logits, model(input_ids), atol=ATOL, rtol=0)
    assert llama.config.max_position_embeddings == 150
