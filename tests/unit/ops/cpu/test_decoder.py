"""The decoder in one call equals the model, and a row's result depends on nothing but its sequence."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from telechat.layers.mlp import SwiGLU
from telechat.layers.moe import MixtureOfExperts, MoeConfig
from telechat.models import TeleChatConfig, TeleChatModel, build_model, initialise
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.decoder import Decoder, DecoderLayer, ReduceFunction, obstacle
from telechat.ops.cpu.mixture import Expert, Mixture
from telechat.ops.cpu.weights import PackedWeight, WeightFormat
from telechat.ops.paged import INT4, PagedCache, Sequences

BLOCK_SIZE = 16
MIXTURE = MoeConfig(num_experts=5, num_experts_per_token=2)


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


def feed_forward(
    context: Context, mlp: SwiGLU | MixtureOfExperts, weight_format: WeightFormat, local: slice
) -> dict[str, object]:
    """The fields of a DecoderLayer; of a mixture only the experts in `local`."""
    if isinstance(mlp, MixtureOfExperts):
        experts = [
            Expert(**feed_forward(context, expert, weight_format, local))  # type: ignore[arg-type]
            for expert in list(mlp.local_experts)[local]
            if isinstance(expert, SwiGLU)
        ]
        config = mlp.router.config
        mixture = Mixture(
            router=PackedWeight.pack(context, mlp.router.weight, "float32"),
            experts=experts,
            first_expert=local.start or 0,
            num_experts_per_token=config.num_experts_per_token,
            norm_topk_prob=config.norm_topk_prob,
            routed_scaling_factor=config.routed_scaling_factor,
        )
        return {"mixture": mixture}
    linears = {"gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}
    packed = {name: PackedWeight.pack(context, x.weight, weight_format) for name, x in linears.items()}
    return {**packed, "down_bias": mlp.down_proj.bias}


def make_decoder(
    context: Context,
    model: TeleChatModel,
    weight_format: WeightFormat,
    *,
    cache_dtype: torch.dtype = torch.float32,
    deterministic: bool = True,
    reduce: ReduceFunction | None = None,
    local_experts: slice = slice(None),
) -> Decoder:
    config = model.config

    def packed(linear: torch.nn.Linear) -> PackedWeight:
        return PackedWeight.pack(context, linear.weight, weight_format)

    layers = [
        DecoderLayer(
            query=packed(block.self_attention.query),
            key_value=packed(block.self_attention.key_value),
            dense=packed(block.self_attention.dense),
            input_norm=block.input_layernorm.weight,
            post_norm=block.post_attention_layernorm.weight,
            dense_bias=block.self_attention.dense.bias,
            **feed_forward(context, block.mlp, weight_format, local_experts),  # type: ignore[arg-type]
        )
        for block in model.transformer.h
    ]
    caches = [
        PagedCache.allocate(24, config.num_kv_heads, BLOCK_SIZE, config.head_dim, dtype=cache_dtype)
        for _ in layers
    ]
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
        reduce=reduce,
    )


def run(
    decoder: Decoder, model: TeleChatModel, chunks: list[Chunk], *, num_decoding: int = 0
) -> list[Tensor]:
    """Logits of every new token, by chunk; the first `num_decoding` chunks are of answers."""
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
    tables = [chunk.blocks for chunk in chunks]
    sequences = Sequences.of(counts, lengths, tables, num_decoding=num_decoding)
    logits = decoder(x, cos, sin, torch.tensor(slots), sequences, torch.arange(len(ids)))
    return list(logits.split(counts))


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(0, 120, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"residual_post_layernorm": True},
        {"num_kv_heads": 4, "tie_word_embeddings": False},
        {"moe": MIXTURE},
        {"moe": replace(MIXTURE, norm_topk_prob=False, routed_scaling_factor=0.7, num_experts_per_token=1)},
    ],
    ids=["gqa", "post-norm", "mha-untied", "mixture", "top-1"],
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


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.int8, INT4], ids=str)
@pytest.mark.parametrize("moe", [None, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("weight_format", ["int4", "int8", "bfloat16", "float32"])
def test_deterministic_rows(
    context: Context, weight_format: WeightFormat, moe: MoeConfig | None, cache_dtype: torch.dtype
) -> None:
    model = make_model(moe=moe)
    decoder = make_decoder(context, model, weight_format, cache_dtype=cache_dtype)
    first, second = tokens(60, 4), tokens(33, 5)
    (alone,) = run(decoder, model, [Chunk(first, 0, [0, 1, 2, 3])])
    steps = [
        run(decoder, model, [Chunk([token], place, [4, 5, 6, 7])])[0] for place, token in enumerate(first)
    ]
    assert torch.equal(torch.cat(steps), alone)
    beside = run(decoder, model, [Chunk(second, 0, [8, 9, 10]), Chunk(first, 0, [11, 12, 13, 14])])
    assert torch.equal(beside[1], alone)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8, INT4], ids=str)
@pytest.mark.parametrize("moe", [None, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("weight_format", ["int4", "int8", "bfloat16"])
def test_fast_rows_depend_on_their_kind_and_not_on_their_company(
    context: Context, weight_format: WeightFormat, moe: MoeConfig | None, cache_dtype: torch.dtype
) -> None:
    """A prompt's rows: whole, in chunks, beside others. An answer's: alone, several, beside prompts."""
    model = make_model(moe=moe)

    def decoder() -> Decoder:
        return make_decoder(context, model, weight_format, cache_dtype=cache_dtype, deterministic=False)

    prompt, answer, other, blocks = tokens(70, 8), tokens(6, 9), tokens(33, 10), [0, 1, 2, 3, 4]
    alone = decoder()
    (whole,) = run(alone, model, [Chunk(prompt, 0, blocks)])
    steps = [
        run(alone, model, [Chunk([token], 70 + place, blocks)], num_decoding=1)[0]
        for place, token in enumerate(answer)
    ]
    beside = decoder()
    parts = [run(beside, model, [Chunk(prompt[:1], 0, blocks)])[0]]
    parts.append(run(beside, model, [Chunk(other, 0, [8, 9, 10]), Chunk(prompt[1:50], 1, blocks)])[1])
    mixed = [Chunk(other[:2], 33, [8, 9, 10]), Chunk(prompt[50:], 50, blocks)]
    parts.append(run(beside, model, mixed, num_decoding=1)[1])
    assert torch.equal(torch.cat(parts), whole)
    mixed = [Chunk(answer, 70, blocks), Chunk(other, 0, [11, 12, 13])]
    assert torch.equal(run(beside, model, mixed, num_decoding=1)[0], torch.cat(steps))


@pytest.mark.parametrize(("cache_dtype", "most"), [(torch.int8, 0.02), (INT4, 0.4)], ids=str)
def test_integer_caches_stay_near_the_model(context: Context, cache_dtype: torch.dtype, most: float) -> None:
    model = make_model()
    decoder = make_decoder(context, model, "float32", cache_dtype=cache_dtype)
    ids = tokens(50, 6)
    expected = model(torch.tensor([ids]))[0]
    (logits,) = run(decoder, model, [Chunk(ids, 0, [3, 1, 4, 0])])
    error = float((logits - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    assert most / 100 < error < most


def test_rows_that_are_not_numbers_leave_the_others_alone(context: Context) -> None:
    """NaN has no most probable experts; a row still has no expert twice, for which there would be no room."""
    model = make_model(moe=MIXTURE)
    model.transformer.word_embeddings.weight[0] = torch.nan
    decoder = make_decoder(context, model, "float32")
    good = [token + 1 for token in tokens(5, 11) if token < 119]
    (alone,) = run(decoder, model, [Chunk(good, 0, [0])])
    broken, beside = run(decoder, model, [Chunk([0] * 40, 0, [1, 2, 3]), Chunk(good, 0, [4])])
    assert bool(broken.isnan().all())
    assert torch.equal(beside[:, 1:], alone[:, 1:])  # the head may be the embedding


@pytest.mark.parametrize("moe", [None, MIXTURE], ids=["dense", "mixture"])
def test_ranks_add_up(any_context: Context, moe: MoeConfig | None) -> None:
    """One rank that holds all, with a reduction that says it was called: biases are added once."""
    model = make_model(moe=moe)
    seen: list[tuple[int, ...]] = []
    decoder = make_decoder(any_context, model, "float32", reduce=lambda x: seen.append(tuple(x.shape)))
    ids = tokens(7, 7)
    (logits,) = run(decoder, model, [Chunk(ids, 0, [2])])
    (expected,) = run(make_decoder(any_context, model, "float32"), model, [Chunk(ids, 0, [2])])
    assert torch.equal(logits, expected)
    assert seen == [(7 * 64,)] * 6


def test_a_partial_sum_is_replaced(any_context: Context) -> None:
    model = make_model()
    ids = tokens(5, 8)
    doubled = make_decoder(any_context, model, "float32", reduce=lambda x: x.mul_(2))
    (logits,) = run(doubled, model, [Chunk(ids, 0, [0])])
    for block in model.transformer.h:
        for linear in (block.self_attention.dense, block.mlp.down_proj):
            linear.weight.mul_(2)
            linear.bias.mul_(2)
    (expected,) = run(make_decoder(any_context, model, "float32"), model, [Chunk(ids, 0, [0])])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_experts_of_several_ranks(any_context: Context) -> None:
    """Each of two ranks runs in a thread of its own; what one lacks the other adds."""
    model = make_model(moe=MIXTURE)
    ids = tokens(30, 9)
    (expected,) = run(make_decoder(any_context, model, "float32"), model, [Chunk(ids, 0, [0, 1])])
    barrier = threading.Barrier(2, timeout=60)
    parts: dict[int, Tensor] = {}
    calls = [0, 0]

    def reducer(rank: int) -> ReduceFunction:
        def reduce(x: Tensor) -> None:
            calls[rank] += 1
            is_mixture = calls[rank] % 2 == 0  # attention is whole on both
            parts[rank] = x.clone()
            barrier.wait()
            if is_mixture:
                x.add_(parts[1 - rank])
            barrier.wait()

        return reduce

    results: dict[int, Tensor] = {}

    def work(rank: int, local: slice) -> None:
        decoder = make_decoder(Context(1), model, "float32", reduce=reducer(rank), local_experts=local)
        (results[rank],) = run(decoder, model, [Chunk(ids, 0, [0, 1])])

    threads = [
        threading.Thread(target=work, args=(rank, local))
        for rank, local in enumerate([slice(0, 2), slice(2, 5)])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in (0, 1):
        torch.testing.assert_close(results[rank], expected, rtol=1e-4, atol=1e-4)


def test_a_failing_reduction_is_raised(any_context: Context) -> None:
    model = make_model()
    calls = []

    def fail(x: Tensor) -> None:
        calls.append(x)
        raise ConnectionError("a rank is gone")

    decoder = make_decoder(any_context, model, "float32", reduce=fail)
    with pytest.raises(ConnectionError, match="a rank is gone"):
        run(decoder, model, [Chunk(tokens(3, 1), 0, [0])])
    assert len(calls) == 1


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
    bare = replace(layers[0], gate=None)
    assert "neither a mixture" in str(obstacle([bare, *layers[1:]], caches, final_norm, head, 4))
