"""Every form of attention passes the same test: plain loops over queries, heads and keys."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from telechat.errors import DeviceError
from telechat.ops.attention import causal_mask, choose_attention, reference_attention, sdpa_attention

FORMS = {"reference": reference_attention, "sdpa": sdpa_attention}
# A mean over at most 9 values of size 1, in the precision of the dtype.
ATOL = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def random_inputs(
    B: int, S: int, T: int, H: int, K: int, d: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(S * 100 + T)
    return tuple(  # type: ignore[return-value]
        torch.randn(B, length, heads, d, generator=generator).to(dtype)
        for length, heads in ((S, H), (T, K), (T, K))
    )


def by_loops(q: Tensor, k: Tensor, v: Tensor, is_seen: Any) -> Tensor:
    """Attention as the sentence says it; `is_seen(b, s, t)` tells which keys a query sees."""
    B, S, H, d = q.shape
    group = H // k.shape[2]
    out = torch.zeros(B, S, H, d)
    for b in range(B):
        for s in range(S):
            for h in range(H):
                keys = [t for t in range(k.shape[1]) if is_seen(b, s, t)] or list(range(k.shape[1]))
                scores = [
                    float(q[b, s, h].double() @ k[b, t, h // group].double()) / math.sqrt(d) for t in keys
                ]
                weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
                values = torch.stack([v[b, t, h // group].double() for t in keys])
                out[b, s, h] = weights @ values
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ATOL)
@pytest.mark.parametrize("K", [4, 2, 1])
class TestContract:
    def check(self, form: str, inputs: tuple[Tensor, Tensor, Tensor], is_seen: Any, **options: Any) -> None:
        found = FORMS[form](*inputs, **options)
        assert found.dtype == inputs[0].dtype
        expected = by_loops(*inputs, is_seen)
        torch.testing.assert_close(found.float(), expected, atol=ATOL[found.dtype], rtol=0)

    def test_all_keys(self, form: str, dtype: torch.dtype, K: int) -> None:
        self.check(form, random_inputs(2, 1, 9, 4, K, 8, dtype), lambda b, s, t: True)

    def test_causal(self, form: str, dtype: torch.dtype, K: int) -> None:
        self.check(form, random_inputs(2, 7, 7, 4, K, 8, dtype), lambda b, s, t: t <= s, is_causal=True)

    def test_mask_of_ragged_rows(self, form: str, dtype: torch.dtype, K: int) -> None:
        """Two rows, left padding of 0 and 3, two new tokens after five."""
        first = (0, 3)
        seen = torch.tensor(
            [[[first[b] <= t <= 5 + s for t in range(7)] for s in range(2)] for b in range(2)]
        )
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
        self.check(
            form, random_inputs(2, 2, 7, 4, K, 8, dtype), lambda b, s, t: bool(seen[b, s, t]), mask=mask
        )

    def test_a_row_that_sees_nothing_is_finite(self, form: str, dtype: torch.dtype, K: int) -> None:
        q, k, v = random_inputs(1, 3, 3, 4, K, 8, dtype)
        mask = torch.full((1, 1, 3, 3), torch.finfo(dtype).min, dtype=dtype)
        found = FORMS[form](q * 30, k, v, mask=mask)  # scores beyond what fp16 can add to its minimum
        assert found.isfinite().all()


def test_fully_masked_row_is_uniform_in_fp32() -> None:
    q, k, v = random_inputs(1, 2, 2, 1, 1, 4)
    mask = torch.full((1, 1, 2, 2), torch.finfo(torch.float32).min)
    for form in FORMS.values():
        expected = v.mean(1, keepdim=True).expand_as(v)
        torch.testing.assert_close(form(q, k, v, mask=mask), expected)


def test_causal_mask() -> None:
    mask = causal_mask(3, torch.float16, "cpu")
    assert mask.shape == (1, 1, 3, 3)
    assert mask.isfinite().all()
    assert (mask[0, 0] == 0).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


@pytest.mark.parametrize("form", FORMS)
def test_dropout_only_when_asked(form: str) -> None:
    inputs = random_inputs(1, 5, 5, 2, 2, 4)
    plain = FORMS[form](*inputs, is_causal=True)
    assert torch.equal(FORMS[form](*inputs, is_causal=True, dropout_p=0.0), plain)
    torch.manual_seed(0)
    assert not torch.allclose(FORMS[form](*inputs, is_causal=True, dropout_p=0.5), plain)


class TestChoice:
    @pytest.mark.parametrize("name", ["reference", "sdpa"])
    def test_by_name(self, name: str) -> None:
        choice = choose_attention(name, device_type="cpu", dtype=torch.float32, head_dim=64)
        assert (choice.name, choice.function, choice.reason) == (name, FORMS[name], "asked for by name")

    @pytest.mark.parametrize(
        ("device_type", "dtype", "head_dim", "reason"),
        [
            ("cpu", torch.bfloat16, 128, "runs on CUDA devices, this model is on cpu"),
            ("cuda", torch.float32, 128, "takes fp16 or bf16, this model is float32"),
            ("cuda", torch.float16, 512, "up to 256, this model has 512"),
            ("cuda", torch.float16, 128, "does not import"),
        ],
    )
    def test_flash_obstacles(
        self,
        monkeypatch: pytest.MonkeyPatch,
        device_type: str,
        dtype: torch.dtype,
        head_dim: int,
        reason: str,
    ) -> None:
        """`auto` falls back and says why; `flash` fails and says why."""
        monkeypatch.setitem(sys.modules, "flash_attn", None)
        options: dict[str, Any] = {"device_type": device_type, "dtype": dtype, "head_dim": head_dim}
        choice = choose_attention("auto", **options)
        assert choice.name == "sdpa"
        assert reason in choice.reason
        with pytest.raises(DeviceError, match="--attention flash cannot run") as caught:
            choose_attention("flash", **options)
        assert reason in str(caught.value)

    def test_flash_where_it_can(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def flash(q: Tensor, k: Tensor, v: Tensor, *, dropout_p: float, causal: bool) -> Tensor:
            calls.append((dropout_p, causal))
            return reference_attention(q, k, v, is_causal=causal)

        module = ModuleType("flash_attn")
        module.flash_attn_func = flash  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "flash_attn", module)
        options: dict[str, Any] = {"device_type": "cuda", "dtype": torch.float16, "head_dim": 8}
        inputs = random_inputs(1, 4, 4, 2, 1, 8)
        for name in ("auto", "flash"):
            choice = choose_attention(name, **options)
            assert choice.name == "flash"
            found = choice.function(*inputs, is_causal=True, dropout_p=0.25)
            assert torch.equal(found, reference_attention(*inputs, is_causal=True))
        assert calls == [(0.25, True)] * 2
        mask = causal_mask(4, torch.float32, "cpu")
        masked = choose_attention("auto", **options).function(*inputs, mask=mask)
        torch.testing.assert_close(masked, reference_attention(*inputs, is_causal=True))
        with pytest.raises(DeviceError, match="mask"):
            choose_attention("flash", **options).function(*inputs, mask=mask)

    def test_unknown_name(self) -> None:
        with pytest.raises(DeviceError, match="Unknown attention 'fast'"):
            choose_attention("fast", device_type="cpu", dtype=torch.float32, head_dim=64)
