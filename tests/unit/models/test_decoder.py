"""The decoder: caches, ragged batches, masks, modes past the training length, training switches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.unit.models.small import KINDS, MIXTURE, SMALL, small_model, tokens
from torch import Tensor

from telechat.errors import ConfigError, ContextLengthError, DeviceError, PromptError
from telechat.models import KVCache, TeleChatConfig, TeleChatModel, Trace, build_model, initialise

ATOL = 1e-5
MODES = ("official", "consistent", "static")


def cache_for(model: TeleChatModel, rows: int, length: int = 64) -> KVCache:
    return KVCache(model.config, rows, length, dtype=model.dtype)


def close(found: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("attention", ["reference", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_pieces_through_a_cache_equal_the_whole(kind: str, attention: str) -> None:
    model = small_model(KINDS[kind], attention=attention)
    input_ids = tokens(2, 16)
    whole = model(input_ids)
    assert whole.shape == (2, 16, SMALL.vocab_size)
    for ends in ([16], [5, 16], [5, 6, 7, 12, 16], list(range(1, 17))):
        cache = cache_for(model, 2)
        starts = [0, *ends[:-1]]
        pieces = [model(input_ids[:, a:b], cache=cache) for a, b in zip(starts, ends, strict=True)]
        close(torch.cat(pieces, dim=1), whole)
        assert cache.lengths == [16, 16]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_ragged_rows_share_a_step(kind: str) -> None:
    """Rows of lengths 3, 9 and 6 take their next tokens together, as in continuous batching."""
    model = small_model(KINDS[kind])
    input_ids = tokens(3, 16)
    cache = cache_for(model, 3)
    for row, length in enumerate((3, 9, 6)):
        view = cache.rows(row, row + 1)
        model(input_ids[row : row + 1, :length], cache=view)
        cache.lengths[row] = view.lengths[0]
    new = torch.stack([input_ids[row, length : length + 2] for row, length in enumerate((3, 9, 6))])
    found = model(new, cache=cache)
    for row, length in enumerate((3, 9, 6)):
        close(found[row], model(input_ids[row : row + 1, : length + 2])[0, -2:])
    assert cache.lengths == [5, 11, 8]


@torch.no_grad()
def test_fewer_rows_than_the_cache_has() -> None:
    model = small_model()
    cache = cache_for(model, 4)
    close(model(tokens(2, 5), cache=cache), model(tokens(2, 5)))
    assert cache.lengths == [5, 5, 0, 0]


@pytest.mark.parametrize("attention", ["reference", "sdpa"])
@torch.no_grad()
def test_padding_is_invisible(attention: str) -> None:
    """What stands in padded columns changes nothing, left or right, cached or not."""
    model = small_model(attention=attention)
    input_ids = tokens(2, 10)
    for first, last in ((3, 10), (0, 7), (2, 8)):
        mask = torch.zeros(2, 10, dtype=torch.int64)
        mask[:, first:last] = 1
        other = torch.where(mask == 1, input_ids, tokens(2, 10, seed=9))
        close(model(other, mask)[:, first:last], model(input_ids, mask)[:, first:last])
        assert model(input_ids, mask).isfinite().all()
        cache = cache_for(model, 2)
        model(other[:, :6], mask[:, :6], cache=cache)
        cached = model(other[:, 6:], mask[:, 6:], cache=cache)
        if last > 6:
            close(cached[:, : last - 6], model(input_ids, mask)[:, 6:last])


@torch.no_grad()
def test_positions_replace_columns() -> None:
    """Left padding with positions from the first real token equals no padding at all, exactly so."""
    model = small_model()
    input_ids = tokens(1, 8)
    padded = torch.cat([tokens(1, 4, seed=5), input_ids], dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 8])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    close(model(padded, mask, positions)[:, 4:], model(input_ids), atol=2e-6)
    assert not torch.allclose(model(padded, mask)[:, 4:], model(input_ids), atol=2e-6)


@torch.no_grad()
def test_last_only() -> None:
    model = small_model()
    found = model(tokens(2, 6), last_only=True)
    assert found.shape == (2, 1, SMALL.vocab_size)
    close(found, model(tokens(2, 6))[:, -1:])


class TestPastTheTrainingLength:
    """`training_seqlen` is 16 here; sequences grow to 40."""

    def growth(self, model: TeleChatModel, input_ids: Tensor, first: int = 12) -> Tensor:
        cache = cache_for(model, len(input_ids))
        model(input_ids[:, :first], cache=cache)
        steps = [model(input_ids[:, i : i + 1], cache=cache) for i in range(first, input_ids.shape[1])]
        return torch.cat(steps, dim=1)

    @torch.no_grad()
    def test_consistent_equals_recomputation(self) -> None:
        model = small_model(rope_mode="consistent")
        input_ids = tokens(2, 40)
        expected = [model(input_ids[:, : i + 1])[:, -1:] for i in range(12, 40)]
        close(self.growth(model, input_ids), torch.cat(expected, dim=1))

    @torch.no_grad()
    def test_official_keeps_old_keys(self) -> None:
        input_ids = tokens(2, 40)
        official = self.growth(small_model(rope_mode="official"), input_ids)
        consistent = self.growth(small_model(rope_mode="consistent"), input_ids)
        close(official[:, :4], consistent[:, :4])
        assert not torch.allclose(official[:, -1], consistent[:, -1], atol=1e-2)

    @torch.no_grad()
    def test_static_equals_one_call_with_the_same_table(self) -> None:
        model = small_model(rope_mode="static", static_length=40)
        input_ids = tokens(2, 40)
        close(self.growth(model, input_ids), model(input_ids)[:, 12:])
        close(model(input_ids), small_model(rope_mode="official")(input_ids))

    @torch.no_grad()
    def test_static_without_a_length_is_the_training_length(self) -> None:
        model = small_model(rope_mode="static")
        assert model.static_length == 16
        close(model(tokens(1, 10)), small_model()(tokens(1, 10)))

    @pytest.mark.parametrize("mode", MODES)
    @torch.no_grad()
    def test_ragged_rows_on_both_sides_of_it(self, mode: Any) -> None:
        """A row within the training length is not disturbed by a longer neighbour, then or later."""
        model = small_model(rope_mode=mode, static_length=40 if mode == "static" else None)
        input_ids = tokens(2, 24)
        cache = cache_for(model, 2)
        for row, length in ((0, 5), (1, 16)):
            view = cache.rows(row, row + 1)
            model(input_ids[row : row + 1, :length], cache=view)
            cache.lengths[row] = view.lengths[0]
        together = []
        for step in range(4):  # row 0 at 6 .. 9 tokens, row 1 at 17 .. 20
            new = torch.stack([input_ids[0, 5 + step : 6 + step], input_ids[1, 16 + step : 17 + step]])
            together.append(model(new, cache=cache))
        alone = [model(input_ids[:1, 9 + step : 10 + step], cache=cache) for step in range(3)]
        expected = model(input_ids[:1, :12])
        close(torch.cat([step[:1] for step in together], dim=1), expected[:, 5:9])
        close(torch.cat(alone, dim=1), expected[:, 9:12])
        if mode == "consistent":
            close(together[-1][1], model(input_ids[1:, :20])[0, -1:])

    @torch.no_grad()
    def test_consistent_respects_positions(self) -> None:
        """Left padding, positions from the first real token: the same as without padding."""
        model = small_model(rope_mode="consistent")
        input_ids = tokens(1, 20)
        padded = torch.cat([tokens(1, 3, seed=5), input_ids], dim=1)
        mask = torch.tensor([[0] * 3 + [1] * 20])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        exact = small_model(
            SMALL.replace(rope=replace(SMALL.rope, table_dtype="float32")), rope_mode="consistent"
        )
        for each, atol in ((exact, ATOL), (model, 5e-2)):
            cache = cache_for(each, 1)
            each(padded[:, :12], mask[:, :12], positions[:, :12], cache)
            found = each(padded[:, 12:], mask[:, 12:], positions[:, 12:], cache)
            # The padded call is three tokens longer, and the table follows the length.
            stretched = each(padded, mask, positions)
            close(found, stretched[:, 12:])
            assert torch.allclose(found[:, -1:], stretched[:, -1:], atol=atol)


class TestRefusals:
    def test_ids(self) -> None:
        model = small_model()
        for wrong in (SMALL.vocab_size, -1):
            with pytest.raises(PromptError, match=f"token id {wrong} is outside the vocabulary of 50"):
                model(torch.tensor([[1, wrong]]))
        for shape in ((3,), (1, 0), (1, 2, 3)):
            with pytest.raises(PromptError, match="input_ids has shape"):
                model(torch.zeros(shape, dtype=torch.int64))

    def test_masks_and_positions(self) -> None:
        model = small_model()
        cache = cache_for(model, 2)
        model(tokens(2, 4), cache=cache)
        with pytest.raises(PromptError, match=r"attention_mask has shape \(2, 5\); expected \(2, 3\)"):
            model(tokens(2, 3), torch.ones(2, 5))
        with pytest.raises(PromptError, match=r"expected \(2, 3\) for the new tokens or \(2, 7\) for all"):
            model(tokens(2, 3), torch.ones(2, 6), cache=cache)
        with pytest.raises(PromptError, match=r"positions has shape \(1, 3\)"):
            model(tokens(2, 3), positions=torch.zeros(1, 3, dtype=torch.int64))
        assert cache.lengths == [4, 4]
        for wrong in (-1, 16):
            with pytest.raises(PromptError, match=r"must be in \[0, 16\)"):
                model(tokens(1, 2), positions=torch.tensor([[0, wrong]]))

    def test_full_cache(self) -> None:
        model = small_model()
        cache = cache_for(model, 1, length=8)
        model(tokens(1, 8), cache=cache)
        with pytest.raises(ContextLengthError, match="9 tokens; this model accepts 8"):
            model(tokens(1, 1), cache=cache)

    def test_options(self) -> None:
        with pytest.raises(ConfigError, match="rope mode 'fast' is unknown"):
            build_model(SMALL, rope_mode="fast")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="static_length is -3"):
            build_model(SMALL, rope_mode="static", static_length=-3)
        with pytest.raises(DeviceError, match="flash"):
            build_model(SMALL, attention="flash")


class TestTraining:
    @pytest.mark.parametrize("field", ["hidden_dropout", "attention_dropout"])
    @pytest.mark.parametrize("attention", ["reference", "sdpa"])
    def test_dropout_in_training_only(self, field: str, attention: str) -> None:
        model = small_model(SMALL.replace(**{field: 0.5}), attention=attention)
        input_ids = tokens(1, 8)
        close(model(input_ids), small_model(attention=attention)(input_ids))
        assert not torch.allclose(model.train()(input_ids), model(input_ids), atol=1e-3)

    @pytest.mark.parametrize("kind", KINDS)
    def test_gradient_checkpointing_changes_nothing(self, kind: str) -> None:
        gradients = []
        for is_checkpointed in (False, True):
            model = small_model(KINDS[kind]).train()
            model.transformer.gradient_checkpointing = is_checkpointed
            trace = Trace()
            loss = model(tokens(2, 8), trace=trace).square().mean()
            loss = loss + sum((routing.aux_loss for routing in trace.routings), torch.zeros(()))
            loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters()})
            # The second run of a checkpointed block must not be counted again.
            assert len(trace.routings) == (2 if KINDS[kind].moe else 0)
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            assert gradient is not None, name
            close(gradients[1][name], gradient, atol=1e-7)

    def test_gradient_checkpointing_recomputes(self) -> None:
        runs = []
        model = small_model().train()
        model.transformer.h[0].register_forward_pre_hook(lambda *args: runs.append(1))
        model.transformer.gradient_checkpointing = True
        model(tokens(1, 4)).sum().backward()
        assert len(runs) == 2

    @pytest.mark.parametrize("config", [SMALL, MIXTURE], ids=["dense", "mixture"])
    @pytest.mark.parametrize("attention", ["reference", "sdpa"])
    def test_padded_batch_under_autocast(self, config: TeleChatConfig, attention: str) -> None:
        model = small_model(config, attention=attention).train()
        mask = torch.ones(2, 8, dtype=torch.int64)
        mask[0, :3] = 0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(tokens(2, 8), mask)
        assert logits.isfinite().all()
        logits[mask == 1].float().square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        exact = model(tokens(2, 8), mask)[mask == 1]
        if config is SMALL:  # in a mixture a rounded token may go to another expert
            assert (logits[mask == 1].float() - exact).abs().max() < 0.05 * exact.abs().max()

    def test_training_after_inference_mode(self) -> None:
        model = small_model().train()
        with torch.inference_mode():
            model(tokens(1, 8))
        model(tokens(1, 8)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


class TestBuilding:
    def test_meta_allocates_nothing_and_chooses_for_the_target(self) -> None:
        model = build_model(SMALL, device="meta", target="cpu", dtype=torch.bfloat16)
        assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
        assert model.attention_choice is not None
        assert "this model is on cpu" in model.attention_choice.reason

    def test_initialise(self) -> None:
        model = build_model(MIXTURE)
        initialise(model, seed=3)
        again = build_model(MIXTURE)
        initialise(again, seed=3)
        for (name, value), other in zip(model.named_parameters(), again.parameters(), strict=True):
            assert torch.equal(value, other)
            if name.endswith("bias"):
                assert (value == 0).all()
            elif value.dim() == 1:
                assert (value == 1).all()
            else:
                assert 0.1 < value.std() < 0.3
                assert value.mean().abs() < 0.05

    @pytest.mark.parametrize("kind", KINDS)
    def test_trace(self, kind: str) -> None:
        trace = Trace()
        model = small_model(KINDS[kind])
        model(tokens(1, 4), trace=trace)
        assert len(trace.hidden_states) == SMALL.num_layers + 1
        close(trace.hidden_states[-1], model.hidden_states(tokens(1, 4)))
