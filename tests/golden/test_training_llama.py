"""Oracle: ten fp32 steps of full training equal those of the same weights as a transformers Llama."""

from __future__ import annotations

import pytest
import torch
from tests.golden.llama_training import freeze, our_losses, their_losses
from tests.golden.test_llama_oracle import GENERATIONS, llama_tensors, random_model, to_llama

# Biases that Llama has and TeleChat has not.
ONLY_LLAMA = ("q_proj.bias", "k_proj.bias", "v_proj.bias", "gate_proj.bias", "up_proj.bias")


@pytest.mark.parametrize("name", ["telechat-7b", "telechat2-115b"])
def test_full_training(name: str) -> None:
    model = random_model(GENERATIONS[name])
    llama = to_llama(model, 64)
    freeze(llama.named_parameters(), ONLY_LLAMA)
    expected = their_losses(llama, model.config.vocab_size)
    got = our_losses(model)
    assert expected[-1] < expected[0] - 0.5
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    weights = llama_tensors(model, query_scale=1.0)
    for key, value in llama.state_dict().items():
        if key in weights:
            torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-4, msg=key)
