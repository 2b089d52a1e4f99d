"""Our decoder computes what the official code computed: every recorded array, every generation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.golden.recorded import (
    DATA,
    MIXTURE,
    OFFICIAL,
    VARIANTS,
    arrays,
    assert_close,
    has,
    ids,
    recorded_model,
    values,
)
from torch import Tensor

from telechat.checkpoint import load_model
from telechat.layers.rotary import RotaryTables
from telechat.models import KVCache, TeleChatModel, Trace

# Which test reads which array; `test_every_array_is_tested` holds it against the files.
TESTED = {
    "test_logits": {"input_ids", "attention_mask", "logits"},
    "test_hidden_states": {"hidden_states"},
    "test_first_layer_keys_and_values": {"layer0_key_rotated", "layer0_value"},
    "test_loss_and_gradients": {"labels", "loss", "grad_norm_names", "grad_norms", "grad_h0_key_value"},
    "test_greedy_decoding": {"greedy_prompt", "greedy_ids", "greedy_step_logits"},
    "test_left_padding": {"leftpad_input_ids", "leftpad_attention_mask", "leftpad_logits"},
    "test_left_padded_batch_decoding": {"leftpad_greedy_ids"},
    "test_longer_than_training": {"long_input_ids", "long_positions", "long_logits"},
    "test_rotary_tables": {f"rope_{f}_len{n}" for f in ("cos", "sin") for n in (1, 200)},
    "test_growth_past_training_length_recomputed": {
        "cross_prompt",
        "cross_nocache_ids",
        "cross_nocache_step_logits",
    },
    "test_growth_past_training_length_with_old_keys": {
        "cross_cached_prompt",
        "cross_cached_ids",
        "cross_cached_step_logits",
    },
    "test_stretched_base": {"ntk_input_ids", "ntk_positions", "ntk_logits"},
    "test_released_context_length": {"released_ctx_logits"},
    "test_expert_choice": {"topk_experts", "topk_weights"},
}


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_array_is_tested(variant: str) -> None:
    assert set(arrays(variant)) <= set().union(*TESTED.values())
    assert set(TESTED) <= set(globals())


@pytest.mark.parametrize("attention", ["reference", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits(variant: str, attention: str) -> None:
    model = recorded_model(variant, attention=attention)
    found = model(ids(variant, "input_ids"), ids(variant, "attention_mask"))
    assert_close(found, values(variant, "logits"))
    assert_close(model(ids(variant, "input_ids")), values(variant, "logits"))


@pytest.mark.parametrize("variant", OFFICIAL)
@torch.no_grad()
def test_hidden_states(variant: str) -> None:
    trace = Trace()
    recorded_model(variant)(ids(variant, "input_ids"), trace=trace)
    assert_close(torch.stack(trace.hidden_states)[:, 0], values(variant, "hidden_states"))


@pytest.mark.parametrize("variant", OFFICIAL)
@torch.no_grad()
def test_first_layer_keys_and_values(variant: str) -> None:
    model = recorded_model(variant)
    input_ids = ids(variant, "input_ids")
    cache = KVCache(model.config, *input_ids.shape, dtype=torch.float32)
    model(input_ids, cache=cache)
    assert_close(cache.keys[0][0], values(variant, "layer0_key_rotated"))
    assert_close(cache.values[0][0], values(variant, "layer0_value"))


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("variant", OFFICIAL)
def test_loss_and_gradients(variant: str, is_checkpointed: bool) -> None:
    model = recorded_model(variant).train()
    model.transformer.gradient_checkpointing = is_checkpointed
    labels = ids(variant, "labels")
    logits = model(ids(variant, "input_ids"), ids(variant, "attention_mask"))
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    assert_close(loss, values(variant, "loss"))
    loss.backward()
    parameters = dict(model.named_parameters())
    names = [str(name) for name in arrays(variant)["grad_norm_names"]]
    assert set(names) == set(parameters)
    norms = torch.stack([gradient(parameters[name]).norm() for name in names])
    assert_close(norms, values(variant, "grad_norms"))
    key_value = parameters["transformer.h.0.self_attention.key_value.weight"]
    assert_close(gradient(key_value), values(variant, "grad_h0_key_value"))


def gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def grow(model: TeleChatModel, prompt: Tensor, num_new: int, *, cached: bool) -> tuple[Tensor, Tensor]:
    """Greedy ids [num_new] and the logits [num_new, V] that chose them."""
    steps, chosen = [], []
    cache = KVCache(model.config, 1, prompt.shape[1] + num_new, dtype=model.dtype) if cached else None
    whole = new = prompt
    for _ in range(num_new):
        steps.append(model(new if cached else whole, cache=cache)[0, -1])
        new = steps[-1].argmax().view(1, 1)
        whole = torch.cat([whole, new], dim=1)
        chosen.append(new.item())
    return torch.tensor(chosen), torch.stack(steps)


def assert_grows(
    variant: str, model: TeleChatModel, name: str, prompt: str | None = None, *, cached: bool = True
) -> None:
    expected = ids(variant, f"{name}_ids")
    found, logits = grow(model, ids(variant, prompt or f"{name}_prompt"), len(expected), cached=cached)
    assert found.tolist() == expected.tolist()
    assert_close(logits, values(variant, f"{name}_step_logits"))


@pytest.mark.parametrize("mode", ["official", "consistent", "static"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_greedy_decoding(variant: str, mode: str) -> None:
    """Within the training length the three modes are one."""
    assert_grows(variant, recorded_model(variant, rope_mode=mode), "greedy")


@pytest.mark.parametrize("attention", ["reference", "sdpa"])
@pytest.mark.parametrize("variant", OFFICIAL)
@torch.no_grad()
def test_left_padding(variant: str, attention: str) -> None:
    mask = ids(variant, "leftpad_attention_mask")
    found = recorded_model(variant, attention=attention)(ids(variant, "leftpad_input_ids"), mask)
    assert found.isfinite().all()
    assert_close(found[mask == 1], values(variant, "leftpad_logits")[mask == 1])


@pytest.mark.parametrize("variant", OFFICIAL)
@torch.no_grad()
def test_left_padded_batch_decoding(variant: str) -> None:
    expected = ids(variant, "leftpad_greedy_ids")
    model = recorded_model(variant)
    prompt, mask = ids(variant, "leftpad_input_ids"), ids(variant, "leftpad_attention_mask")
    cache = KVCache(model.config, len(prompt), prompt.shape[1] + expected.shape[1], dtype=torch.float32)
    new = model(prompt, mask, cache=cache)[:, -1].argmax(-1, keepdim=True)
    chosen = [new]
    for _ in range(expected.shape[1] - 1):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        new = model(new, mask, cache=cache)[:, -1].argmax(-1, keepdim=True)
        chosen.append(new)
    assert torch.cat(chosen, dim=1).tolist() == expected.tolist()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_longer_than_training(variant: str) -> None:
    found = recorded_model(variant)(ids(variant, "long_input_ids"))[0, ids(variant, "long_positions")]
    assert_close(found, values(variant, "long_logits"))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_longer_than_training_in_one_static_table(variant: str) -> None:
    """A static table of the call's own length is the official table of that length."""
    input_ids = ids(variant, "long_input_ids")
    model = recorded_model(variant, rope_mode="static", static_length=input_ids.shape[1])
    found = model(input_ids)[0, ids(variant, "long_positions")]
    assert_close(found, values(variant, "long_logits"))


@pytest.mark.parametrize("length", [1, 200])
@pytest.mark.parametrize("variant", OFFICIAL)
def test_rotary_tables(variant: str, length: int) -> None:
    """Exact: fp16 rounding included."""
    config = recorded_model(variant).config
    expected_cos = values(variant, f"rope_cos_len{length}")
    expected_sin = values(variant, f"rope_sin_len{length}")
    tables = RotaryTables(config.rope, config.head_dim)
    cos, sin = tables.rows(torch.arange(len(expected_cos)), length)
    assert torch.equal(cos, expected_cos.float())
    assert torch.equal(sin, expected_sin.float())


@pytest.mark.parametrize("variant", OFFICIAL)
@torch.no_grad()
def test_growth_past_training_length_recomputed(variant: str) -> None:
    """Without a cache, and with one in `consistent` mode, which is to be the same."""
    model = recorded_model(variant, rope_mode="consistent")
    assert_grows(variant, model, "cross_nocache", "cross_prompt")
    assert_grows(variant, model, "cross_nocache", "cross_prompt", cached=False)


@pytest.mark.parametrize("variant", [v for v in OFFICIAL if has(v, "cross_cached_ids")])
@torch.no_grad()
def test_growth_past_training_length_with_old_keys(variant: str) -> None:
    assert_grows(variant, recorded_model(variant, rope_mode="official"), "cross_cached")


@pytest.mark.slow
@pytest.mark.parametrize("variant", [v for v in OFFICIAL if has(v, "ntk_logits")])
@torch.no_grad()
def test_stretched_base(variant: str) -> None:
    model = recorded_model(variant, attention="sdpa")  # the score matrix of the 12B case alone is 1.1 GB
    hidden = model.hidden_states(ids(variant, "ntk_input_ids"))[0, ids(variant, "ntk_positions")]
    assert_close(F.linear(hidden, model.output_weight), values(variant, "ntk_logits"))


@pytest.mark.parametrize("variant", [v for v in OFFICIAL if has(v, "released_ctx_logits")])
@torch.no_grad()
def test_released_context_length(variant: str) -> None:
    """The 7B as released stretches its base (alpha 3) for the shortest prompt already."""
    model = recorded_model(variant)
    rope = model.config.rope
    released = RotaryTables(
        type(rope)(base_length=rope.base_length, training_length=8192), model.config.head_dim
    )
    model.rotary = released
    found = model(ids(variant, "input_ids"), ids(variant, "attention_mask"))
    assert_close(found, values(variant, "released_ctx_logits"))


@torch.no_grad()
def test_expert_choice() -> None:
    trace = Trace()
    recorded_model(MIXTURE)(ids(MIXTURE, "input_ids"), trace=trace)
    experts = torch.stack([routing.experts for routing in trace.routings])
    weights = torch.stack([routing.weights for routing in trace.routings])
    expected = ids(MIXTURE, "topk_experts")
    assert torch.equal(experts.view(expected.shape), expected)
    assert_close(weights.view(expected.shape), values(MIXTURE, "topk_weights"))


@pytest.mark.parametrize(("dtype", "mean", "worst"), [("bfloat16", 0.02, 0.15), ("float16", 0.0025, 0.02)])
@pytest.mark.parametrize("attention", ["reference", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_half_precision(variant: str, attention: str, dtype: str, mean: float, worst: float) -> None:
    """Logits have a standard deviation near 1. bf16 keeps 8 bits of a number and fp16 11, which the sums of
    the layers turn into mean differences of 0.011 and 0.0014: the limits are twice that, more for the worst.
    """
    model = load_model(DATA / variant, device="cpu", dtype=dtype, attention=attention)
    found = model(ids(variant, "input_ids"), ids(variant, "attention_mask"))
    assert str(found.dtype) == f"torch.{dtype}"
    assert_near(found, values(variant, "logits"), mean, worst)
    if has(variant, "leftpad_logits"):
        mask = ids(variant, "leftpad_attention_mask")
        found = model(ids(variant, "leftpad_input_ids"), mask)
        assert found.isfinite().all()
        assert_near(found[mask == 1], values(variant, "leftpad_logits")[mask == 1], mean, worst)


def assert_near(found: Tensor, expected: Tensor, mean: float, worst: float) -> None:
    difference = (found.float() - expected).abs()
    assert difference.mean() <= mean
    assert difference.max() <= worst
