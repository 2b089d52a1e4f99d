"""Running over a paged cache equals the model without one, however texts are cut up and mixed."""

from __future__ import annotations

import pytest
import torch
from tests.unit.models.paged_driver import Driver, text
from tests.unit.models.small import KINDS, MIXTURE, SMALL, small_model
from torch import Tensor

from telechat.layers.rotary import RopeSettings
from telechat.models import KVCache, TeleChatConfig, TeleChatModel
from telechat.models.paged import TorchExecutor, rotary_rows
from telechat.ops.paged import INT4
from telechat.ops.paged_choice import REFERENCE

LONG = RopeSettings(base_length=16, training_length=128)


def long_model(config: TeleChatConfig = SMALL) -> TeleChatModel:
    return small_model(config.replace(rope=LONG))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kernels", [None, REFERENCE], ids=["chosen", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_model_without_a_cache(kind: str, kernels: object) -> None:
    model = long_model(KINDS[kind])
    driver = Driver(TorchExecutor(model, kernels=kernels))  # type: ignore[arg-type]
    first, second = text(45, 1), text(33, 2)
    whole = {"a": model(torch.tensor([first]))[0], "b": model(torch.tensor([second]))[0]}
    parts = [driver.run({"a": first[:40]}), driver.run({"b": second[:20], "a": first[40:41]})]
    parts += [driver.run({"a": first[41:43], "b": second[20:]}), driver.run({"a": first[43:]})]
    for name, expected in whole.items():
        close(torch.cat([part[name] for part in parts if name in part]), expected.detach(), 2e-5)


@pytest.mark.parametrize("block_size", [16, 32, 64, 96, 128])
def test_every_block_size_with_head_dimension_160(block_size: int) -> None:
    model = long_model(SMALL.replace(hidden_size=640, num_heads=4, num_kv_heads=2, initializer_range=0.05))
    driver = Driver(TorchExecutor(model), block_size, num_blocks=12)
    ids = text(100, 3)
    parts = [driver.run({"a": ids[:97]}), driver.run({"a": ids[97:98]}), driver.run({"a": ids[98:]})]
    close(torch.cat([part["a"] for part in parts]), model(torch.tensor([ids]))[0].detach())


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 59])
def test_chunks_do_not_matter(cut: int) -> None:
    model = long_model(MIXTURE)
    ids = text(60, 4)
    whole = Driver(TorchExecutor(model)).run({"a": ids})["a"]
    driver = Driver(TorchExecutor(model))
    close(torch.cat([driver.run({"a": ids[:cut]})["a"], driver.run({"a": ids[cut:]})["a"]]), whole)


@pytest.mark.parametrize("mode", ["official", "static"])
def test_past_the_training_length(mode: str) -> None:
    """Cached decoding over the contiguous cache says what each mode means."""
    model = small_model(SMALL, rope_mode=mode, static_length=64)
    ids = text(50, 5)
    cache = KVCache(model.config, 1, 64, dtype=model.dtype)
    driver = Driver(TorchExecutor(model))
    start = 0
    for stop in (20, 21, 22, 35, 36, 37, 50):
        expected = model(torch.tensor([ids[start:stop]]), cache=cache)[0]
        length = 64 if mode == "static" else stop
        close(driver.run({"a": ids[start:stop]}, rope_length=length)["a"], expected.detach())
        start = stop


def test_texts_of_different_tables_in_one_batch() -> None:
    model = small_model(SMALL)  # trained at 16 tokens
    driver = Driver(TorchExecutor(model))
    texts = {"short": text(10, 6), "long": text(40, 7), "longer": text(90, 8)}
    for name, logits in driver.run(texts).items():
        close(logits, model(torch.tensor([texts[name]]))[0].detach())


def test_rotary_runs() -> None:
    tables = small_model(SMALL).rotary
    positions = torch.tensor([3, 4, 39, 0])
    cos, sin = rotary_rows(tables, positions, [(2, 5), (3, 40), (4, 1)])
    for rows, length in ((slice(0, 2), 5), (slice(2, 3), 40), (slice(3, 4), 1)):
        expected_cos, expected_sin = tables.rows(positions[rows], length)
        assert torch.equal(cos[rows], expected_cos)
        assert torch.equal(sin[rows], expected_sin)


def test_only_wanted_rows_and_hidden_states() -> None:
    model = long_model()
    ids = text(30, 9)
    whole = Driver(TorchExecutor(model)).run({"a": ids})["a"]
    driver = Driver(TorchExecutor(model))
    last = driver.executor.forward(driver.batch({"a": ids}, last_only=True))
    assert last.shape == (1, SMALL.vocab_size)
    close(last[0], whole[-1])
    driver = Driver(TorchExecutor(model))
    hidden = driver.executor.hidden_states(driver.batch({"a": ids}))
    close(hidden, model.hidden_states(torch.tensor([ids]))[0].detach())


@pytest.mark.parametrize(("dtype", "most", "share"), [(torch.int8, 0.03, 0.53), (INT4, 0.3, 0.3125)], ids=str)
def test_caches_of_integers_are_near_and_small(dtype: torch.dtype, most: float, share: float) -> None:
    """`share` of the memory of bf16."""
    config = SMALL.replace(hidden_size=256, initializer_range=0.05)
    model = long_model(config)
    executor = TorchExecutor(model, kv_dtype=dtype)
    ids = text(60, 10)
    driver = Driver(executor)
    logits = torch.cat([driver.run({"a": ids[:40]})["a"], driver.run({"a": ids[40:]})["a"]])
    expected = model(torch.tensor([ids]))[0].detach()
    error = (logits - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert most / 100 < float(error) < most
    whole = TorchExecutor(model, kv_dtype=torch.bfloat16).cache_bytes_per_block(16)
    assert executor.cache_bytes_per_block(16) == pytest.approx(share * whole, rel=0.01)


def test_cache_bytes_are_what_is_allocated() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int8, INT4):
        executor = TorchExecutor(long_model(), kv_dtype=dtype)
        executor.allocate(7, 32)
        stored = [
            tensor
            for cache in executor._caches
            for tensor in (cache.keys, cache.values, cache.key_scales, cache.value_scales)
            if tensor is not None
        ]
        assert sum(tensor.nbytes for tensor in stored) == 7 * executor.cache_bytes_per_block(32)


def test_describes_what_computes() -> None:
    executor = TorchExecutor(long_model(), why_torch="for a test", kernels=REFERENCE)
    executor.allocate(1, 16)
    assert executor.describe() == (
        "torch modules on cpu (for a test); paged attention: reference (asked for by name)"
    )
