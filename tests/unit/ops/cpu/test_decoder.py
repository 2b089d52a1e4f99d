"""The decoder in one call equals the model, and a row's result depends on nothing but its sequence."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from telechat.models import TeleChatConfig, TeleChatModel, build_model, initialise
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.decoder import Decoder, DecoderLayer, obstacle
from telechat.ops.cpu.weights import PackedWeight, WeightFormat
from telechat.ops.paged import PagedCache, Sequences

BLOCK_SIZE = 16


@dataclass
class Chunk:
    """New tokens of one sequence: their ids and how many came before."""

    ids: list[int]
    past: int
    blocks: list[int]


def make_model(**changes: object) -> TeleChatModel:
    settings: dict[str, object] = {
        "vocab_size": 120,
        "hidden_size": 64,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_hidden_size": 100,
        "initializer_range": 0.15,
    }
    config = TeleChatConfig(**{**settings, **changes})  # type: ignore[arg-type]
    model = build_model(config, attention="reference").eval()
    initialise(model, seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name or "ln_f" in name:
            torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 and "bias" not in name else 0.0, 0.2)
    return model.requires_grad_(False)


def make_decoder(
    context: Context,
    model: TeleChatModel,
    weight_format: WeightFormat,
    *,
    cache_dtype: torch.dtype = torch.float32,
    deterministic: bool = True,
) -> Decoder:
    config = model.config

    def packed(linear: torch.nn.Linear) -> PackedWeight:
        return PackedWeight.pack(context, linear.weight, weight_format)

    layers = [
        DecoderLayer(
            query=packed(block.self_attention.query),
            key_value=packed(block.self_attention.key_value),
            dense=packed(block.self_attention.dense),
            gate=packed(block.mlp.gate_proj),
            up=packed(block.mlp.up_proj),
            down=packed(block.mlp.down_proj),
            input_norm=block.input_layernorm.weight,
            post_norm=block.post_attention_layernorm.weight,
            dense_bias=block.self_attention.dense.bias,
            down_bias=block.mlp.down_proj.bias,
        )
        for block in model.transformer.h
    ]
    shape = (24, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
    caches = [PagedCache(*(torch.zeros(shape, dtype=cache_dtype) for _ in range(2))) for _ in layers]
    return Decoder(
        context,
        layers,
        caches,
        model.transformer.ln_f.weight,
        PackedWeight.pack(context, model.output_weight, weight_format),
        num_heads=config.num_heads,
        eps=config.norm_eps,
        residual_post_norm=config.residual_post_layernorm,
        deterministic=deterministic,
    )


def run(decoder: Decoder, model: TeleChatModel, chunks: list[Chunk]) -> list[Tensor]:
    """Logits of every new token, by chunk."""
    ids = torch.tensor([token for chunk in chunks for token in chunk.ids])
    positions = [range(chunk.past, chunk.past + len(chunk.ids)) for chunk in chunks]
    slots = [
        chunk.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        for chunk, span in zip(chunks, positions, strict=True)
        for position in span
    ]
    flat = torch.tensor([position for span in positions for position in span])
    cos, sin = model.rotary.rows(flat, model.config.training_seqlen)
    x = model.transformer.word_embeddings(ids).float().contiguous()
    lengths = [chunk.past + len(chunk.ids) for chunk in chunks]
    counts = [len(chunk.ids) for chunk in chunks]
    sequences = Sequences.of(counts, lengths, [chunk.blocks for chunk in chunks])
    logits = decoder(x, cos, sin, torch.tensor(slots), sequences, torch.arange(len(ids)))
    return list(logits.split(counts))


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(0, 120, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize(
    "changes",
    [{}, {"residual_post_layernorm": True}, {"num_kv_heads": 4, "tie_word_embeddings": False}],
    ids=["gqa", "post-norm", "mha-untied"],
)
def test_equals_the_model(context: Context, changes: dict[str, object]) -> None:
    model = make_model(**changes)
    decoder = make_decoder(context, model, "float32")
    first, second = tokens(40, 1), tokens(23, 2)
    expected = [model(torch.tensor([ids]))[0] for ids in (first, second)]
    # A prompt in two chunks beside another one, then single tokens of both.
    parts = run(decoder, model, [Chunk(first[:30], 0, [5, 2, 9]), Chunk(second[:20], 0, [1, 7])])
    torch.testing.assert_close(parts[0], expected[0][:30], rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(parts[1], expected[1][:20], rtol=1e-3, atol=2e-4)
    parts = run(decoder, model, [Chunk(second[20:21], 20, [1, 7]), Chunk(first[30:], 30, [5, 2, 9])])
    torch.testing.assert_close(parts[0], expected[1][20:21], rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(parts[1], expected[0][30:], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("weight_format", "limit"), [("bfloat16", 0.03), ("int8", 0.04), ("int4", 0.06)], ids=str
)
@pytest.mark.parametrize("deterministic", [True, False], ids=["deterministic", "fast"])
def test_rounded_weights_stay_near_the_model_with_those_weights(
    context: Context, weight_format: WeightFormat, limit: float, deterministic: bool
) -> None:
    model = make_model()
    decoder = make_decoder(
        context, model, weight_format, cache_dtype=torch.bfloat16, deterministic=deterministic
    )
    for parameter in model.parameters():
        if parameter.dim() == 2 and parameter is not model.transformer.word_embeddings.weight:
            parameter.copy_(PackedWeight.pack(context, parameter, weight_format).unpack())
    ids = tokens(70, 3)
    hidden = model.hidden_states(torch.tensor([ids]))[0]
    head = PackedWeight.pack(context, model.output_weight, weight_format).unpack()
    expected = hidden @ head.T
    (logits,) = run(decoder, model, [Chunk(ids, 0, [0, 1, 2, 3, 4])])
    # What is left is the rounding of activations, which the layers add up.
    assert float((logits - expected).square().mean().sqrt() / expected.square().mean().sqrt()) < limit


@pytest.mark.parametrize("weight_format", ["int4", "int8", "bfloat16", "float32"])
def test_deterministic_rows(context: Context, weight_format: WeightFormat) -> None:
    model = make_model()
    decoder = make_decoder(context, model, weight_format)
    first, second = tokens(60, 4), tokens(33, 5)
    (alone,) = run(decoder, model, [Chunk(first, 0, [0, 1, 2, 3])])
    steps = [
        run(decoder, model, [Chunk([token], place, [4, 5, 6, 7])])[0] for place, token in enumerate(first)
    ]
    assert torch.equal(torch.cat(steps), alone)
    beside = run(decoder, model, [Chunk(second, 0, [8, 9, 10]), Chunk(first, 0, [11, 12, 13, 14])])
    assert torch.equal(beside[1], alone)


def test_only_the_logits_asked_for(any_context: Context) -> None:
    model = make_model()
    decoder = make_decoder(any_context, model, "float32")
    x, cos, sin = torch.randn(3, 64), torch.ones(3, 16), torch.zeros(3, 16)
    sequences = Sequences.of([3], [3], [[0]])
    every = decoder(x.clone(), cos, sin, torch.arange(3), sequences, torch.arange(3))
    chosen = decoder(x.clone(), cos, sin, torch.arange(3), sequences, torch.tensor([2, 0]))
    assert torch.equal(chosen, every[[2, 0]])
    none = decoder(x.clone(), cos, sin, torch.arange(3), sequences, torch.empty(0, dtype=torch.int64))
    assert none.shape == (0, 120)


def test_what_does_not_fit_is_named(any_context: Context) -> None:
    model = make_model()
    layers, caches, final_norm, head = make_decoder(any_context, model, "int8")._kept
    assert obstacle(layers, caches, final_norm, head, 4) is None
    assert "2 caches" in str(obstacle(layers, caches[:2], final_norm, head, 4))
    assert "query is 64 x 64" in str(obstacle(layers, caches, final_norm, head, 2))
    assert "final_norm" in str(obstacle(layers, caches, final_norm[:3], head, 4))
