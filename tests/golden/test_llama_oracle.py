"""An oracle that shares no code with us: every dense TeleChat is a Llama with two more biases.

Random models of each generation are converted to transformers' LlamaForCausalLM, which must agree. Rotary
tables are exact here (`table_dtype` float32): Llama does not round its own to fp16, and rounding ours would
hide anything smaller than 6e-5 behind it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from telechat.layers.rotary import RopeSettings
from telechat.models import KVCache, TeleChatConfig, TeleChatModel, build_model, initialise

transformers = pytest.importorskip("transformers", reason="the independent Llama is in transformers")

ATOL = 1e-5
SMALL = TeleChatConfig(
    vocab_size=96,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    ffn_hidden_size=112,
    rope=RopeSettings(base_length=64, training_length=64, table_dtype="float32"),
)
GENERATIONS = {
    "telechat-7b": SMALL.replace(tie_word_embeddings=True),
    # Trained past its base length, as the 7B was (8192 and 4096): alpha is 3 for every prompt.
    "telechat-7b-stretched": SMALL.replace(
        tie_word_embeddings=True, rope=replace(SMALL.rope, base_length=32)
    ),
    "telechat-12b": SMALL.replace(hidden_size=80),  # head dimension 20: no power of two, like the 12B's 160
    "telechat-12b-v2": SMALL.replace(embed_layernorm=True),
    "telechat2": SMALL.replace(num_layers=2),
    "telechat2-115b": SMALL.replace(num_heads=8, num_kv_heads=2, norm_eps=1e-8),
    "one key/value head": SMALL.replace(num_kv_heads=1),
}


def random_model(config: TeleChatConfig, **options: object) -> TeleChatModel:
    model = build_model(config, **options)  # type: ignore[arg-type]
    initialise(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Fresh biases are 0 and fresh norms 1: neither would show when misplaced.
            if name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
            elif parameter.dim() == 1:
                parameter.normal_(1, 0.1, generator=generator)
            else:
                parameter.normal_(0, 0.1, generator=generator)
    return model.eval()


def to_llama(model: TeleChatModel, length: int) -> torch.nn.Module:
    """The same function as LlamaForCausalLM, with the rotary table of a call of `length` tokens baked in."""
    config = model.config
    alpha, mscale = config.rope.stretch(length)
    head_dim = config.head_dim
    theta = config.rope.base * alpha ** (head_dim / (head_dim - 2))
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            rms_norm_eps=config.norm_eps,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=config.tie_word_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            max_position_embeddings=max(length, config.training_seqlen),
            attn_implementation="eager",
        )
    )
    state = {name: torch.zeros_like(tensor) for name, tensor in llama.state_dict().items()}
    state |= llama_tensors(model, query_scale=mscale**2)
    llama.load_state_dict(state)
    return llama.eval()


def llama_tensors(model: TeleChatModel, query_scale: float) -> dict[str, Tensor]:
    """Our tensors under Llama's names; biases that only Llama has stay zero."""
    config, ours = model.config, {name: value.detach() for name, value in model.named_parameters()}
    embedding = ours["transformer.word_embeddings.weight"]
    head = embedding if config.tie_word_embeddings else ours["lm_head.weight"]
    if config.embed_layernorm:
        variance = embedding.square().mean(-1, keepdim=True)
        embedding = embedding * torch.rsqrt(variance + config.norm_eps)
        embedding = embedding * ours["transformer.word_embeddings_layernorm.weight"]
    llama = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": ours["transformer.ln_f.weight"],
        "lm_head.weight": head,
    }
    for layer in range(config.num_layers):
        source, target = f"transformer.h.{layer}.", f"model.layers.{layer}."
        attention = f"{source}self_attention."
        fused = ours[f"{attention}key_value.weight"]
        pairs = fused.view(config.num_kv_heads, 2, config.head_dim, config.hidden_size)
        llama[f"{target}self_attn.q_proj.weight"] = ours[f"{attention}query.weight"] * query_scale
        llama[f"{target}self_attn.k_proj.weight"] = pairs[:, 0].flatten(0, 1)
        llama[f"{target}self_attn.v_proj.weight"] = pairs[:, 1].flatten(0, 1)
        llama[f"{target}self_attn.o_proj.weight"] = ours[f"{attention}dense.weight"]
        llama[f"{target}self_attn.o_proj.bias"] = ours[f"{attention}dense.bias"]
        same = ("input_layernorm.weight", "post_attention_layernorm.weight", "mlp.gate_proj.weight",
                "mlp.up_proj.weight", "mlp.down_proj.weight", "mlp.down_proj.bias")  # fmt: skip
        llama |= {target + name: ours[source + name] for name in same}
    return llama


def prompts(config: TeleChatConfig, length: int) -> Tensor:
    return torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("attention", ["reference", "sdpa"])
@pytest.mark.parametrize("name", GENERATIONS)
@torch.no_grad()
def test_logits(name: str, attention: str) -> None:
    model = random_model(GENERATIONS[name], attention=attention)
    input_ids = prompts(model.config, 40)
    expected = to_llama(model, 40)(input_ids).logits
    assert expected.std() > 0.3  # logits that hardly differ would agree with anything
    torch.testing.assert_close(model(input_ids), expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", ["telechat-12b", "telechat2-115b"])
@torch.no_grad()
def test_past_the_training_length(name: str) -> None:
    """Stretched base and attention scaling: theta and the query projection carry them in the Llama."""
    model = random_model(GENERATIONS[name])
    input_ids = prompts(model.config, 150)
    assert model.config.rope.stretch(150)[0] == 7
    torch.testing.assert_close(model(input_ids), to_llama(model, 150)(input_ids).logits, atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", ["telechat-7b", "telechat2-115b"])
@torch.no_grad()
def test_cached_steps_and_left_padding(name: str) -> None:
    model = random_model(GENERATIONS[name])
    input_ids = prompts(model.config, 30)
    mask = torch.ones_like(input_ids)
    mask[0, :7] = 0
    llama = to_llama(model, 30)
    expected = llama(input_ids[:1, 7:]).logits[0], llama(input_ids[1:]).logits[0]
    cache = KVCache(model.config, 2, 30, dtype=torch.float32)
    pieces = [model(input_ids[:, :11], mask[:, :11], cache=cache)]
    pieces += [model(input_ids[:, i : i + 1], mask[:, : i + 1], cache=cache) for i in range(11, 20)]
    pieces += [model(input_ids[:, 20:], mask, cache=cache)]
    found = torch.cat(pieces, dim=1)
    torch.testing.assert_close(found[0, 7:], expected[0], atol=ATOL, rtol=0)
    torch.testing.assert_close(found[1], expected[1], atol=ATOL, rtol=0)


@torch.no_grad()
def test_rounded_tables_differ_as_much_as_expected() -> None:
    """fp16 tables, which checkpoints were trained with, are not Llama's: the difference is small but real."""
    config = GENERATIONS["telechat2"]
    rounded = config.replace(rope=replace(config.rope, table_dtype="float16"))
    model = random_model(rounded)
    input_ids = prompts(config, 40)
    difference = (model(input_ids) - to_llama(model, 40)(input_ids).logits).abs().max()
    assert ATOL < difference < 5e-2
