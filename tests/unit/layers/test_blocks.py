"""Norm, self-attention, feed-forward and mixture against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from telechat.layers.attention import AttentionInputs, SelfAttention
from telechat.layers.mlp import SwiGLU
from telechat.layers.moe import MixtureOfExperts, MoeConfig, Router
from telechat.layers.norm import RMSNorm
from telechat.ops.attention import reference_attention


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


class TestNorm:
    def test_definition(self) -> None:
        norm = RMSNorm(8, 1e-5)
        torch.nn.init.normal_(norm.weight)
        x = torch.randn(3, 8)
        expected = x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * norm.weight
        torch.testing.assert_close(norm(x), expected)

    def test_rounds_before_the_weight(self) -> None:
        """The official order: normalise in fp32, round, then multiply in the lower precision."""
        norm = RMSNorm(64, 1e-5).bfloat16()
        torch.nn.init.normal_(norm.weight)
        x = torch.randn(4, 64).bfloat16()
        rounded = F.rms_norm(x.float(), (64,), eps=1e-5).bfloat16()
        assert torch.equal(norm(x), rounded * norm.weight)

    def test_small_and_large_inputs_in_fp16(self) -> None:
        norm = RMSNorm(8, 1e-5).half()
        for scale in (1e-4, 1e4):  # the squares leave fp16's range
            assert norm((torch.randn(2, 8) * scale).half()).isfinite().all()


class TestSelfAttention:
    def test_key_value_is_interleaved_per_head(self) -> None:
        attention = SelfAttention(8, 4, 2, reference_attention)
        x = torch.randn(1, 3, 8)
        inputs = AttentionInputs(torch.ones(1, 3, 2), torch.zeros(1, 3, 2), None, is_causal=True)
        seen = []

        def remember(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append((k, v))
            return k, v

        attention(x, inputs, remember)
        (k, v), fused = seen[0], attention.key_value.weight
        for head in range(2):
            rows = fused[head * 4 : head * 4 + 4]  # two key rows, then two value rows
            torch.testing.assert_close(k[:, :, head], x @ rows[:2].T)
            torch.testing.assert_close(v[:, :, head], x @ rows[2:].T)

    def test_biases(self) -> None:
        attention = SelfAttention(8, 4, 2, reference_attention)
        assert attention.query.bias is None
        assert attention.key_value.bias is None
        assert attention.dense.bias is not None

    def test_dropout_in_training_only(self) -> None:
        attention = SelfAttention(8, 4, 2, reference_attention, dropout=0.5)
        inputs = AttentionInputs(torch.ones(1, 3, 2), torch.zeros(1, 3, 2), None, is_causal=True)
        x = torch.randn(1, 3, 8)
        assert not torch.equal(attention.train()(x, inputs), attention(x, inputs))
        assert torch.equal(attention.eval()(x, inputs), attention(x, inputs))


def test_swiglu() -> None:
    block = SwiGLU(4, 6)
    assert block.gate_proj.bias is None
    assert block.up_proj.bias is None
    x = torch.randn(2, 4)
    gate, up = x @ block.gate_proj.weight.T, x @ block.up_proj.weight.T
    expected = (gate * gate.sigmoid() * up) @ block.down_proj.weight.T + block.down_proj.bias
    torch.testing.assert_close(block(x), expected)


def mixture(**options: object) -> MixtureOfExperts:
    config = MoeConfig(**{"num_experts": 4, "num_experts_per_token": 2, **options})  # type: ignore[arg-type]
    block = MixtureOfExperts(8, 6, config)
    torch.nn.init.normal_(block.router.weight)
    return block


class TestMixture:
    @pytest.mark.parametrize("norm_topk_prob", [True, False])
    def test_definition(self, norm_topk_prob: bool) -> None:
        block = mixture(norm_topk_prob=norm_topk_prob, routed_scaling_factor=1.5).eval()
        x = torch.randn(2, 5, 8)
        expected = torch.zeros_like(x)
        for b in range(2):
            for s in range(5):
                probabilities = (block.router.weight @ x[b, s]).softmax(0)
                chosen = probabilities.argsort(descending=True)[:2]
                weights = probabilities[chosen]
                weights = weights / weights.sum() if norm_topk_prob else weights * 1.5
                for weight, index in zip(weights, chosen, strict=True):
                    expected[b, s] += weight * block.local_experts[int(index)](x[b, s])
        torch.testing.assert_close(block(x), expected, atol=1e-6, rtol=1e-5)

    def test_capacity_in_training_only(self) -> None:
        """Room for ceil(2 * 8 * 0.5 / 4) = 2 assignments; first choices come first, then earlier tokens."""
        block = mixture(capacity_factor=0.5)
        block.router.weight.data.zero_()
        block.router.weight.data[:, 0] = torch.tensor([3.0, 2.0, 1.0, 0.0])
        x = torch.zeros(8, 8)
        x[:, 0] = 1  # every token wants experts 0 and 1
        routed: list = []
        block.train()(x, routed)
        assert (routed[0].weights > 0).tolist() == [[True, True]] * 2 + [[False, False]] * 6
        torch.testing.assert_close(routed[0].weights[:2].sum(-1), torch.ones(2))
        block.eval()(x, routed)
        assert (routed[1].weights > 0).all()

    def test_a_dropped_choice_leaves_its_weight_to_the_other(self) -> None:
        block = mixture(capacity_factor=0.5).train()
        block.router.weight.data.zero_()
        block.router.weight.data[:, 0] = torch.tensor([3.0, 1.0, 0.0, 0.0])
        block.router.weight.data[:, 1] = torch.tensor([3.0, 0.0, 1.0, 0.0])
        x = torch.zeros(8, 8)
        x[:6, 0] = 1
        x[6:, 1] = 1  # too late for expert 0, the first for expert 2
        routed: list = []
        block(x, routed)
        torch.testing.assert_close(routed[0].weights[6:], torch.tensor([[0.0, 1.0]] * 2))

    def test_balance_loss(self) -> None:
        router = Router(4, MoeConfig(num_experts=4, num_experts_per_token=1, aux_loss_factor=0.01))
        router.weight.data = torch.eye(4) * 50
        balanced = router(torch.eye(4))
        assert balanced.aux_loss.item() == pytest.approx(0.01, rel=1e-5)
        collapsed = router(torch.eye(4)[:1].expand(4, 4))
        assert collapsed.aux_loss.item() == pytest.approx(0.04, rel=1e-5)

    def test_padding_counts_for_neither_capacity_nor_balance(self) -> None:
        block = mixture(capacity_factor=0.75).train()
        x, routed = torch.randn(6, 8), []
        expected = block(x, routed)
        places = torch.tensor([1, 2, 4, 5, 6, 9])  # padding before, between and after
        padded, is_real = torch.randn(12, 8), torch.zeros(12, dtype=torch.bool)
        padded[places], is_real[places] = x, True
        got = block(padded, routed, is_real)
        torch.testing.assert_close(got[places], expected)
        assert (routed[0].weights == 0).any() and not routed[1].weights[~is_real].any()
        torch.testing.assert_close(routed[1].aux_loss, routed[0].aux_loss)
        nothing: list = []
        block(padded, nothing, torch.zeros(12, dtype=torch.bool))
        assert nothing[0].aux_loss == 0

    def test_router_stays_in_fp32(self) -> None:
        """Under autocast and with bf16 weights the choice is that of fp32 arithmetic."""
        block = mixture().eval()
        x = torch.randn(64, 8)
        expected = block.router(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = block.router(x)
        assert torch.equal(found.experts, expected.experts)
        assert torch.equal(found.weights, expected.weights)
        assert found.weights.dtype == torch.float32
        lowered = block.bfloat16().router(x.bfloat16())
        assert lowered.weights.dtype == torch.float32

    def test_gradients_reach_router_and_experts(self) -> None:
        block = mixture().train()
        routed: list = []
        (block(torch.randn(32, 8), routed).square().mean() + routed[0].aux_loss).backward()
        assert all(parameter.grad is not None for parameter in block.parameters())
