"""The native executor equals the torch one, frees what it packs, and says why it cannot run a model."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch
from tests.unit.models.paged_driver import Driver, text
from tests.unit.models.small import MIXTURE, SMALL, small_model
from tests.unit.ops.cpu.conftest import skip_without_kernels
from torch import Tensor, nn

from telechat.layers.rotary import RopeSettings
from telechat.layers.sums import OutputSum
from telechat.models import TeleChatConfig, TeleChatModel, build_model, packing
from telechat.models.executors import choose_executor
from telechat.models.native import NativeExecutor, check_batch, native_obstacle
from telechat.models.paged import PagedBatch, TorchExecutor
from telechat.ops.cpu.context import shared_context
from telechat.ops.paged import Sequences
from telechat.ops.paged_choice import REFERENCE

LONG = RopeSettings(base_length=16, training_length=256)
# A multiple of 16, as the kernels' attention wants it.
BASE = SMALL.replace(hidden_size=64, rope=LONG)


@pytest.fixture(autouse=True)
def _kernels() -> None:
    skip_without_kernels()


def model_of(config: TeleChatConfig, dtype: torch.dtype = torch.float32, **options: Any) -> TeleChatModel:
    """A model with random biases and norms, so that none of them can be forgotten."""
    model = small_model(config, attention="reference", **options)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.2)
    return model.to(dtype).requires_grad_(False)


def native(model: TeleChatModel, **options: Any) -> NativeExecutor:
    return NativeExecutor(model, context=shared_context(2), **options)


def mixed_steps(driver: Driver) -> dict[str, Tensor]:
    """Logits of two texts computed in pieces beside each other."""
    first, second = text(45, 1), text(33, 2)
    parts = [driver.run({"a": first[:40]}), driver.run({"b": second[:20], "a": first[40:41]})]
    parts += [driver.run({"a": first[41:43], "b": second[20:]}), driver.run({"a": first[43:]})]
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in "ab"}


def random_config(seed: int) -> TeleChatConfig:
    choose = random.Random(seed).choice
    head_dim, num_kv_heads = choose([16, 32, 64, 128, 160]), choose([1, 2, 3])
    num_heads = num_kv_heads * choose([1, 2, 3])
    return SMALL.replace(
        hidden_size=num_heads * head_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        num_layers=choose([1, 2]),
        ffn_hidden_size=choose([40, 64, 100]),
        vocab_size=choose([50, 131]),
        initializer_range=0.05,
        embed_layernorm=choose([True, False]),
        residual_post_layernorm=choose([True, False]),
        tie_word_embeddings=choose([True, False]),
        rope=LONG,
    )


@pytest.mark.parametrize("seed", range(16))
def test_equals_torch_on_random_models(seed: int) -> None:
    config = random_config(seed)
    block_size = (16, 32, 64, 96, 128)[seed % 5]
    model = model_of(config)
    expected = mixed_steps(Driver(TorchExecutor(model, kernels=REFERENCE), block_size, num_blocks=12))
    results = mixed_steps(Driver(native(model), block_size, num_blocks=12))
    for name, logits in results.items():
        torch.testing.assert_close(logits, expected[name], rtol=1e-3, atol=2e-4, msg=f"{config}")


@pytest.mark.parametrize("deterministic", [True, False])
def test_bfloat16_is_near_torch(deterministic: bool) -> None:
    model = model_of(BASE.replace(initializer_range=0.1), torch.bfloat16)
    executor = native(model, deterministic=deterministic)
    assert executor.kv_dtype == torch.bfloat16
    expected = mixed_steps(Driver(TorchExecutor(model.float(), kernels=REFERENCE)))
    for name, logits in mixed_steps(Driver(executor)).items():
        error = (logits - expected[name]).square().mean().sqrt() / expected[name].square().mean().sqrt()
        assert float(error) < 0.03


@pytest.mark.parametrize("mode", ["official", "static"])
def test_past_the_training_length(mode: str) -> None:
    model = model_of(BASE.replace(rope=SMALL.rope), rope_mode=mode, static_length=64)
    drivers = [Driver(TorchExecutor(model, kernels=REFERENCE)), Driver(native(model))]
    ids, other = text(50, 5), text(30, 6)
    start = 0
    for stop in (20, 21, 40, 50):
        length = 64 if mode == "static" else None
        pieces = {"a": ids[start:stop], "b": other[start : min(stop, 30)]}
        pieces = {name: piece for name, piece in pieces.items() if piece}
        expected, found = (driver.run(pieces, rope_length=length) for driver in drivers)
        for name in pieces:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=2e-4)
        start = stop


@pytest.mark.parametrize("make", [native, TorchExecutor], ids=["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_rows_have_the_same_bits_in_any_company(make: Any, dtype: torch.dtype) -> None:
    model = model_of(BASE, dtype)
    ids, other = text(40, 7), text(30, 8)

    def driver() -> Driver:
        return Driver(make(model, deterministic=True))

    alone = driver().run({"a": ids})["a"]
    one_by_one = driver()
    assert torch.equal(torch.cat([one_by_one.run({"a": [token]})["a"] for token in ids]), alone)
    beside = driver()
    parts = [beside.run({"b": other, "a": ids[:17]})["a"], beside.run({"a": ids[17:], "b": other[:1]})["a"]]
    assert torch.equal(torch.cat(parts), alone)


def test_hidden_states() -> None:
    model = model_of(BASE)
    ids = text(30, 9)
    drivers = [Driver(TorchExecutor(model, kernels=REFERENCE)), Driver(native(model))]
    expected, found = (driver.executor.hidden_states(driver.batch({"a": ids})) for driver in drivers)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_sums_begin_anew_after_a_step_that_failed() -> None:
    """A step may fail behind any of its sums; those of attention and feed-forward must not change places."""
    model = model_of(BASE)
    ids = text(9, 1)
    expected = Driver(native(model)).run({"a": ids})["a"]
    calls: list[str] = []
    failing_at = [2]

    def add_up(name: str) -> Any:
        def sum_over_ranks(values: Tensor) -> Tensor:
            calls.append(name)
            if len(calls) == failing_at[0]:
                raise RuntimeError("a rank is gone")
            return values

        return sum_over_ranks

    for block in model.transformer.blocks:
        block.self_attention.register_forward_hook(OutputSum(add_up("attention")))
        block.mlp.register_forward_hook(OutputSum(add_up("feed-forward")))
    executor = native(model)
    with pytest.raises(RuntimeError, match="a rank is gone"):
        Driver(executor).run({"a": ids})
    assert calls == ["attention", "feed-forward"]
    calls.clear()
    failing_at[0] = 0
    torch.testing.assert_close(Driver(executor).run({"a": ids})["a"], expected)
    assert calls == ["attention", "feed-forward"] * len(model.transformer.blocks)


def test_a_step_without_logits() -> None:
    driver = Driver(native(model_of(BASE)))
    batch = driver.batch({"a": text(20, 1)})
    none = PagedBatch(**{**vars(batch), "logit_rows_L": torch.empty(0, dtype=torch.int64)})
    assert driver.executor.forward(none).shape == (0, 50)


def test_consuming_gives_weights_back_one_by_one() -> None:
    model = model_of(BASE.replace(tie_word_embeddings=False))
    expected = mixed_steps(Driver(TorchExecutor(model, kernels=REFERENCE)))
    executor = native(model, consume=True)
    left = {name for name, parameter in model.named_parameters() if parameter.dim() == 2}
    assert left == {"transformer.word_embeddings.weight"}
    for name, logits in mixed_steps(Driver(executor)).items():
        torch.testing.assert_close(logits, expected[name], rtol=1e-3, atol=2e-4)


def test_packing_without_consuming_leaves_the_model_usable() -> None:
    model = model_of(BASE)
    ids = torch.tensor([text(5, 1)])
    before = model(ids)
    native(model)
    assert torch.equal(model(ids), before)


def test_cache_bytes_are_what_is_allocated() -> None:
    executor = native(model_of(BASE), kv_dtype=torch.bfloat16)
    executor.allocate(7, 32)
    assert executor._decoder is not None
    caches = executor._decoder._kept[1]
    stored = sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)
    assert stored == 7 * executor.cache_bytes_per_block(32)
    executor.close()
    assert executor._decoder is None


def bad_batches() -> dict[str, PagedBatch]:
    def batch(
        slots: list[int],
        table: list[int],
        rows: list[int],
        starts: list[int],
        length: int,
        num_decoding: int = 0,
    ) -> PagedBatch:
        sequences = Sequences(
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor([length], dtype=torch.int32),
            torch.tensor([table], dtype=torch.int32),
            num_decoding=num_decoding,
        )
        ids = torch.zeros(2, dtype=torch.int64)
        return PagedBatch(ids, ids, [(2, 2)], torch.tensor(slots), sequences, torch.tensor(rows))

    return {
        "good": batch([32, 33], [2], [1], [0, 2], 2),
        "slots": batch([32, 64], [2], [1], [0, 2], 2),
        "slots below": batch([-1, 33], [2], [1], [0, 2], 2),
        "block table": batch([32, 33], [4], [1], [0, 2], 2),
        "block table below": batch([32, 33], [-1], [1], [0, 2], 2),
        "longer": batch([32, 33], [2], [1], [0, 2], 17),
        "rows are not": batch([32, 33], [2], [1], [0, 3], 3),
        "shorter": batch([32, 33], [2], [1], [0, 2], 1),
        "wanted rows": batch([32, 33], [2], [2], [0, 2], 2),
        "wanted rows below": batch([32, 33], [2], [-1], [0, 2], 2),
        "more sequences decode": batch([32, 33], [2], [1], [0, 2], 2, 2),
    }


@pytest.mark.parametrize("name", bad_batches())
def test_a_batch_is_checked_before_c_sees_it(name: str) -> None:
    batch = bad_batches()[name]
    if name == "good":
        check_batch(batch, 4, 16)
        return
    with pytest.raises(AssertionError, match=re.escape(name.removesuffix(" below"))):
        check_batch(batch, 4, 16)


def hooked() -> TeleChatModel:
    model = model_of(BASE)
    model.transformer.h[0].self_attention.dense.register_forward_hook(lambda *_: None)
    return model


def replaced() -> TeleChatModel:
    model = model_of(BASE)
    model.transformer.h[1].mlp.up_proj = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("make", "kv_dtype", "reason"),
    [
        (lambda: model_of(BASE, torch.float16), None, "float16"),
        (lambda: model_of(SMALL), None, "head dimension 8"),
        (lambda: model_of(BASE), torch.float16, "cache would be float16"),
        (hooked, None, "h.0.self_attention.dense has hooks"),
        (replaced, None, "up_proj is a Identity"),
        (lambda: build_model(BASE, device="meta"), None, "on meta"),
    ],
)
def test_obstacles(make: Any, kv_dtype: torch.dtype | None, reason: str) -> None:
    assert reason in str(native_obstacle(make(), kv_dtype=kv_dtype))


def test_choice(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="telechat")
    executor = choose_executor(model_of(BASE), deterministic=True, kv_dtype=torch.bfloat16)
    assert isinstance(executor, NativeExecutor)
    assert executor.deterministic
    assert executor.kv_dtype == torch.bfloat16
    assert "weights 13 float32, cache bfloat16, a row's result" in executor.describe()
    assert isinstance(choose_executor(model_of(MIXTURE.replace(num_heads=2))), NativeExecutor)
    fallback = choose_executor(model_of(SMALL), deterministic=True)
    assert isinstance(fallback, TorchExecutor)
    assert fallback.deterministic
    assert "torch modules on cpu (the head dimension 8" in caplog.text


def test_without_kernels_torch_runs_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telechat.ops.cpu.library._attempt", lambda: "no C compiler was found")
    executor = choose_executor(model_of(BASE))
    results = mixed_steps(Driver(executor))
    assert "no C compiler was found" in executor.describe()
    assert "paged attention: torch (no C compiler was found)" in executor.describe()
    whole = executor.model(torch.tensor([text(45, 1)]))[0]  # type: ignore[attr-defined]
    torch.testing.assert_close(results["a"], whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_large_models_in_bfloat16_are_packed_compactly(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(BASE.replace(initializer_range=0.1), dtype)
    plain = native(model)
    assert "in 12 bits" not in plain.describe()
    expected = mixed_steps(Driver(plain))
    monkeypatch.setattr(packing, "_LARGE_MODEL_BYTES", 1)
    compact = native(model)
    expands = dtype == torch.bfloat16 and shared_context(2).isa in ("avx512", "amx")
    assert ("in 12 bits" in compact.describe()) == expands
    for name, logits in mixed_steps(Driver(compact)).items():
        assert torch.equal(logits, expected[name])
    portable = NativeExecutor(model, context=shared_context(2, "portable"))
    assert "in 12 bits" not in portable.describe()
