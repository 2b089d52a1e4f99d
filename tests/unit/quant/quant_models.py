"""Small models whose layers divide into groups, and what tests compare of quantised ones."""

from __future__ import annotations

import torch
from tests.unit.checkpoint.folders import MIXTURE, TINY

from telechat.layers.quantized import QuantizedLinear
from telechat.models import TeleChatModel

PLAIN = TINY.replace(hidden_size=128, ffn_hidden_size=256, vocab_size=96)
TIED = PLAIN.replace(tie_word_embeddings=True)
EXPERTS = MIXTURE.replace(hidden_size=128, ffn_hidden_size=128, vocab_size=96)


def quantised_layers(model: TeleChatModel) -> dict[str, QuantizedLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}


def assert_same(first: TeleChatModel, second: TeleChatModel) -> None:
    """Bit for bit, structure and values."""
    assert first.config == second.config
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs) or sorted(ours) == sorted(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name
