"""Adapters in training: what is frozen and trained, targets, formats, reading out, and the official swap."""

from __future__ import annotations

import pytest
import torch
from tests.unit.train.test_engine import ROWS, rows_batch
from tests.unit.train.test_loop import TINY, tiny_model

from telechat.checkpoint import merge_adapter
from telechat.errors import ConfigError
from telechat.layers.moe import MoeConfig
from telechat.layers.quantized import QuantizedLinear
from telechat.models import TeleChatModel
from telechat.train.adapters import adapter_config, add_adapters, read_out, updates
from telechat.train.config import LoraSection, OptimizerSection
from telechat.train.engine import LocalEngine
from telechat.train.objective import CrossEntropy
from telechat.train.precision import PRECISIONS

BATCH = rows_batch(ROWS, length=8)


def adapted(section: LoraSection, *, precision: str = "fp32", seed: int = 3) -> TeleChatModel:
    model = tiny_model()
    settings = adapter_config(section, "base")
    add_adapters(model, section, settings, PRECISIONS[precision], seed=seed)  # type: ignore[index]
    return model


def train(model: TeleChatModel, *, steps: int = 8, precision: str = "fp32") -> list[float]:
    optimizer = OptimizerSection(lr=5e-2, weight_decay=0.0)
    engine = LocalEngine(model, CrossEntropy(), optimizer, precision)  # type: ignore[arg-type]
    losses = []
    for _ in range(steps):
        losses.append(float(engine.backward([BATCH]).mean))
        engine.step(1.0)
    return losses


KINDS = {
    "lora": LoraSection(rank=4),
    "rslora": LoraSection(rank=4, alpha=4, rslora=True, targets=("query", "down_proj")),
    "dora": LoraSection(rank=4, dora=True),
    "patterns": LoraSection(rank_pattern={"query": 2}, alpha_pattern={r"h\.1\..*": 4.0}),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_read_out_and_merged_computes_what_was_trained(name: str) -> None:
    section = KINDS[name]
    model = adapted(section)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    losses = train(model)
    assert losses[-1] < losses[0] - 0.1
    for parameter_name, weight in before.items():
        assert torch.equal(model.get_parameter(parameter_name), weight), parameter_name
    settings = adapter_config(section, "base")
    adapter = read_out(model.named_parameters(), settings)
    assert {n: len(m.a) for n, m in adapter.modules.items()} == {n: settings.rank(n) for n in adapter.modules}
    merged = tiny_model().eval()
    merge_adapter(merged, adapter)
    torch.testing.assert_close(merged(BATCH.ids), model.eval()(BATCH.ids), atol=1e-5, rtol=1e-5)


def test_adapters_of_experts() -> None:
    moe = MoeConfig(num_experts=4, num_experts_per_token=2)
    config = TINY.replace(moe=moe)
    section = LoraSection(rank=2)
    model = tiny_model(config)
    add_adapters(model, section, adapter_config(section, ""), PRECISIONS["fp32"], seed=1)
    train(model)
    adapter = read_out(model.named_parameters(), adapter_config(section, ""))
    assert len(adapter.modules) == 2 * (3 + 4 * 3)
    merged = tiny_model(config).eval()
    merge_adapter(merged, adapter)
    torch.testing.assert_close(merged(BATCH.ids), model.eval()(BATCH.ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_qlora_trains_on_packed_weights_with_a_head_in_floats(scheme: str) -> None:
    model = adapted(LoraSection(rank=4, quantize=scheme))  # type: ignore[arg-type]
    packed = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(packed) == 2 * 6 and not any("lm_head" in name for name in packed)
    before = {n: m.stored.qweight.clone() for n, m in packed.items()}
    losses = train(model)
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(packed[n].stored.qweight, before[n]) for n in packed)


def test_a_model_that_is_quantised_already_gets_a_head_in_floats() -> None:
    from telechat.models.quantized import quantize_layers
    from telechat.ops.quantized import WeightScheme

    model = tiny_model()
    quantize_layers(model, WeightScheme(4, 32))
    expected = model.eval()(BATCH.ids)
    section = LoraSection(rank=4)
    add_adapters(model, section, adapter_config(section, ""), PRECISIONS["fp32"], seed=1)
    torch.testing.assert_close(model.eval()(BATCH.ids), expected)
    assert isinstance(model.lm_head, torch.nn.Linear)
    losses = train(model)
    assert losses[-1] < losses[0] - 0.1
    with pytest.raises(ConfigError, match=r"lora\.merge"):
        section = LoraSection(merge=True)
        add_adapters(model, section, adapter_config(section, ""), PRECISIONS["fp32"], seed=1)


def test_frozen_matrices_are_kept_as_they_are_multiplied() -> None:
    """The same losses as with frozen fp32 weights, which autocast would round at every product."""
    model = adapted(KINDS["lora"], precision="bf16")
    query = model.transformer.blocks[0].self_attention.query
    assert query.weight.dtype == torch.bfloat16
    assert (
        model.transformer.ln_f.weight.dtype == model.transformer.word_embeddings.weight.dtype == torch.float32
    )
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    wide = adapted(KINDS["lora"], precision="bf16").float()
    assert train(model, precision="bf16") == train(wide, precision="bf16")


def test_the_seed_decides_the_start() -> None:
    one, same, other = (next(updates(adapted(KINDS["lora"], seed=seed))) for seed in (1, 1, 2))
    assert torch.equal(one.a, same.a) and not torch.equal(one.a, other.a)


def test_targets_by_expression() -> None:
    model = adapted(LoraSection(target_regex=r"transformer\.h\.1\..*(query|key_value)"))
    adapter = read_out(model.named_parameters(), adapter_config(LoraSection(), ""))
    assert list(adapter.modules) == [f"transformer.h.1.self_attention.{n}" for n in ("query", "key_value")]


@pytest.mark.parametrize(
    "section",
    [
        LoraSection(targets=("query", "qery")),
        LoraSection(target_regex="nothing"),
        LoraSection(targets=("lm_head",)),
    ],
)
def test_a_target_that_no_layer_has_is_refused(section: LoraSection) -> None:
    with pytest.raises(ConfigError, match="names no linear layer") as caught:
        adapted(section)
    assert "key_value" in str(caught.value.hint)


def test_lora_rank_swap_of_the_original_in_official_mode_only() -> None:
    """`--lora_dim 8` with scaling 1: the original trains rank 1 with factor 8; we train rank 8 with 1/8."""
    asked = {"rank": 8, "alpha": 1.0}
    repaired = adapter_config(LoraSection(**asked), "")  # type: ignore[arg-type]
    official = adapter_config(LoraSection(**asked, mode="official"), "")  # type: ignore[arg-type]
    assert (repaired.r, repaired.scale("query")) == (8, 1 / 8)
    assert (official.r, official.scale("query")) == (1, 8.0)
    with pytest.raises(ConfigError, match="official mode"):
        adapter_config(LoraSection(alpha=1.5, mode="official"), "")


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_no_layer_is_an_error(field: str) -> None:
    """Neither one that is misspelt nor one of a layer that is no target."""
    for pattern in ("quary", "dense"):
        section = LoraSection(**{"targets": ("query",), field: {pattern: 2}})
        with pytest.raises(ConfigError, match=rf"lora.{field} has '{pattern}', which matches no layer"):
            adapted(section)
