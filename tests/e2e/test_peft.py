"""Oracle: adapters start, train and end the same here and in peft, on `telechat.hf` and on a Llama.

Runs under `make oracles`, which installs peft apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.llama_training import our_losses, their_losses
from tests.golden.test_llama_oracle import GENERATIONS, random_model, to_llama

from telechat.checkpoint import Adapter, load_model, read_adapter, save_model, write_adapter
from telechat.models import TeleChatModel
from telechat.train.adapters import adapter_config, add_adapters, read_out
from telechat.train.config import LoraSection
from telechat.train.precision import PRECISIONS

pytestmark = pytest.mark.oracle

KINDS = {
    "lora": LoraSection(rank=4, alpha=8),
    "rslora": LoraSection(rank=4, alpha=4, rslora=True),
    "dora": LoraSection(rank=4, alpha=8, dora=True),
    "patterns": LoraSection(rank_pattern={"query": 2}, alpha_pattern={r"h\.1\..*": 4.0}),
}


def adapted(model: TeleChatModel, section: LoraSection) -> Adapter:
    """Put adapters on a model; returns them as they start."""
    settings = adapter_config(section, "")
    add_adapters(model, section, settings, PRECISIONS["fp32"], seed=1)
    return read_out(model.named_parameters(), settings)


def trained_by_peft(base: torch.nn.Module, start: Path, end: Path, vocab_size: int) -> list[float]:
    """Losses of peft from an adapter folder; what it ends with is saved in another."""
    from peft import PeftModel

    peft: Any = PeftModel.from_pretrained(base, start, is_trainable=True)
    losses = their_losses(peft, vocab_size)
    peft.save_pretrained(end)
    return losses


def assert_same(got: Adapter, expected: Adapter) -> None:
    """Equal settings' effect, and equal matrices."""
    assert got.modules.keys() == expected.modules.keys()
    for name, ours in got.modules.items():
        theirs = expected.modules[name]
        assert got.scale(name) == pytest.approx(expected.scale(name))
        for matrix in ("a", "b", "magnitude"):
            one, other = getattr(ours, matrix), getattr(theirs, matrix)
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=f"{name} {matrix}")


@pytest.mark.parametrize("kind", KINDS)
def test_on_telechat_in_transformers(kind: str, tmp_path: Path) -> None:
    """Official names, all layers, the fused key_value among them."""
    from telechat.hf import TelechatForCausalLM

    save_model(random_model(GENERATIONS["telechat2-115b"]), tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu", dtype="float32")
    start = adapted(model, KINDS[kind])
    write_adapter(start, tmp_path / "start", model.config)
    base = TelechatForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    expected = trained_by_peft(base, tmp_path / "start", tmp_path / "end", model.config.vocab_size)
    got = our_losses(model)
    assert expected[-1] < expected[0] - 0.1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    ended = read_out(model.named_parameters(), start.config)
    assert_same(ended, read_adapter(tmp_path / "end", model.config))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_on_a_llama_of_the_same_weights(kind: str, tmp_path: Path) -> None:
    """Llama names. key_value stays out: as two layers it would train two matrices where we train one."""
    section = LoraSection(**{**vars(KINDS[kind]), "targets": ("query", "dense", "gate_proj", "down_proj")})
    model = random_model(GENERATIONS["telechat-12b"])
    llama = to_llama(model, 64)
    start = adapted(model, section)
    write_adapter(start, tmp_path / "start", model.config, spelling="llama")
    expected = trained_by_peft(llama, tmp_path / "start", tmp_path / "end", model.config.vocab_size)
    got = our_losses(model)
    assert expected[-1] < expected[0] - 0.1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert_same(
        read_out(model.named_parameters(), start.config), read_adapter(tmp_path / "end", model.config)
    )


def test_pefts_own_start_has_our_shapes_and_spread(tmp_path: Path) -> None:
    """A fresh peft adapter: zeros in B, and A uniform within the same bound."""
    from peft import LoraConfig, get_peft_model

    from telechat.hf import TelechatForCausalLM

    model = random_model(GENERATIONS["telechat2"])
    save_model(model, tmp_path / "model")
    base = TelechatForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    settings = LoraConfig(r=16, lora_alpha=16, target_modules=list(LoraSection().targets))
    get_peft_model(base, settings).save_pretrained(tmp_path / "fresh")
    theirs = read_adapter(tmp_path / "fresh", model.config)
    ours = adapted(model, LoraSection(rank=16, alpha=16))
    assert ours.modules.keys() == theirs.modules.keys()
    for name, matrices in theirs.modules.items():
        mine = ours.modules[name]
        assert not matrices.b.any() and not mine.b.any()
        assert mine.a.shape == matrices.a.shape
        assert float(mine.a.abs().max()) == pytest.approx(float(matrices.a.abs().max()), rel=0.05)
