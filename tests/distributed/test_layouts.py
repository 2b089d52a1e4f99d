"""Ranks together compute what one computes: prompts, prefix hits, decoding, embeddings, in every layout.

The ranks are threads with gloo groups between them, which costs no launch; processes are tested beside this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tests.distributed.models import build_rank, executor_of, prompt_batch, run_case, whole_model
from tests.unit.ops.cpu.conftest import skip_without_kernels

from telechat.device import CPU
from telechat.errors import ConfigError
from telechat.models.paged import Executor
from telechat.ops.quantized import WeightScheme, round_to_nearest
from telechat.parallel.groups import Groups
from telechat.parallel.sharding import Layout
from telechat.parallel.tensor import RankPart, collect_logits

TOLERANCE = 1e-5

CASES = [
    pytest.param(Layout(tp=2), {"heads": 8, "kv_heads": 8}, id="tp2-mha"),
    pytest.param(Layout(tp=2), {"heads": 8, "kv_heads": 4, "tied": True}, id="tp2-gqa-tied"),
    pytest.param(Layout(tp=4), {"heads": 8, "kv_heads": 2, "tied": True}, id="tp4-gqa-copied-tied"),
    pytest.param(Layout(tp=4), {"heads": 8, "kv_heads": 8}, id="tp4-mha"),
    pytest.param(Layout(tp=8), {"heads": 8, "kv_heads": 1}, id="tp8-mqa"),
    pytest.param(Layout(tp=8), {"heads": 8, "kv_heads": 8, "vocab": 9}, id="tp8-ranks-without-vocabulary"),
    pytest.param(Layout(tp=2), {"heads": 8, "kv_heads": 8, "native": True}, id="tp2-kernels"),
    pytest.param(Layout(tp=4), {"heads": 8, "kv_heads": 2, "native": True, "tied": True}, id="tp4-kernels"),
    pytest.param(Layout(tp=2), {"heads": 4, "kv_heads": 2, "experts": 4}, id="moe-tp2"),
    pytest.param(Layout(ep=2), {"heads": 4, "kv_heads": 2, "experts": 4}, id="moe-ep2"),
    pytest.param(Layout(ep=4), {"heads": 4, "kv_heads": 4, "experts": 8}, id="moe-ep4"),
    pytest.param(Layout(tp=4, ep=2), {"heads": 4, "kv_heads": 2, "experts": 4}, id="moe-tp4-ep2"),
    pytest.param(Layout(tp=2, ep=4), {"heads": 4, "kv_heads": 4, "experts": 8}, id="moe-tp2-ep4"),
    pytest.param(Layout(tp=2), {"heads": 4, "kv_heads": 2, "bits": 4}, id="tp2-int4"),
    pytest.param(Layout(ep=2), {"heads": 4, "kv_heads": 2, "experts": 4, "bits": 4}, id="moe-ep2-int4"),
    pytest.param(Layout(ep=4), {"heads": 4, "kv_heads": 2, "experts": 4, "bits": 4}, id="moe-ep4-int4"),
    pytest.param(
        Layout(tp=2, ep=4), {"heads": 4, "kv_heads": 4, "experts": 4, "bits": 8}, id="moe-tp2-ep4-int8"
    ),
    pytest.param(
        Layout(tp=2, ep=4),
        {"heads": 4, "kv_heads": 2, "experts": 8, "native": True},
        id="moe-ep4-kernels",
    ),
    pytest.param(
        Layout(tp=2, ep=2),
        {"heads": 4, "kv_heads": 2, "experts": 4, "native": True, "bits": 4},
        id="moe-tp2-ep2-kernels-int4",
    ),
    pytest.param(Layout(tp=4, ep=4), {"heads": 4, "kv_heads": 4, "experts": 4}, id="moe-tp4-ep4"),
]


class Together:
    """What `run_case` needs of an executor, for one rank among threads."""

    def __init__(self, local: Executor, groups: Groups) -> None:
        self.config = local.config
        self.allocate = local.allocate
        self.hidden_states = local.hidden_states
        self._local, self._groups = local, groups

    def forward(self, batch: Any) -> torch.Tensor | None:
        return collect_logits(self._local.forward(batch), self.config.vocab_size, self._groups)


def on_ranks(layout: Layout, work: Callable[[Groups], Any]) -> list[Any]:
    """work(groups) of every rank, each in a thread, with connected groups."""
    groups = [Groups(layout, rank) for rank in range(layout.world_size)]
    port = groups[0].listen(0)

    def run(own: Groups) -> Any:
        own.connect(port, CPU)
        found = work(own)
        own.world.wait_for_all()
        return found

    with ThreadPoolExecutor(layout.world_size) as pool:
        found = list(pool.map(run, groups))
    for own in groups:
        own.close(in_order=False)
    return found


@pytest.mark.parametrize(("layout", "shape"), CASES)
def test_ranks_together_equal_one(layout: Layout, shape: dict[str, Any]) -> None:
    if shape.get("native"):
        skip_without_kernels()
    expected = run_case(executor_of(whole_model(shape), shape))
    found = on_ranks(layout, lambda groups: run_case(Together(build_rank(shape, groups), groups)))
    for ours, whole in zip(found[0], expected, strict=True):
        assert ours.shape == whole.shape and ours.dtype == torch.float32
        assert (ours - whole).abs().max() <= TOLERANCE


def test_no_wanted_rows_are_no_logits() -> None:
    """A step that only works on the middle of prompts."""
    batch = dataclasses.replace(prompt_batch([1, 2, 3], [0]), logit_rows_L=torch.empty(0, dtype=torch.int64))

    def logits(groups: Groups) -> torch.Tensor | None:
        executor = build_rank({"heads": 4, "kv_heads": 4}, groups)
        executor.allocate(4, 16)
        return Together(executor, groups).forward(batch)

    found = on_ranks(Layout(tp=2), logits)
    assert found[0] is not None and found[0].shape == (0, 101)


def test_sums_do_not_depend_on_the_rest_of_the_batch() -> None:
    """Whatever else is summed beside it, a row has the same bits: ranks are added in their order."""
    rows = torch.randn(4, 64, 33, generator=torch.Generator().manual_seed(0))

    def both(groups: Groups) -> tuple[torch.Tensor, torch.Tensor]:
        own = rows[groups.rank]
        alone = torch.cat([groups.world.add_up(row[None].clone()) for row in own])
        return groups.world.add_up(own.clone()), alone

    for batched, alone in on_ranks(Layout(tp=4), both):
        assert torch.equal(batched, alone)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_stored_weight_is_cut_like_the_weight_it_means(bits: int) -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    stored = round_to_nearest(weight, WeightScheme(bits, 32))
    block = "transformer.h.0"
    for rank in (0, 1):
        part = RankPart(Groups(Layout(tp=2), rank))
        part.prepare(whole_model({"heads": 4, "kv_heads": 2}))
        for name in (f"{block}.mlp.gate_proj.weight", f"{block}.mlp.down_proj.weight"):
            cut, plain = part.cut_quantized(name, stored), part.cut(name, stored.dequantise())
            assert cut is not None and plain is not None
            assert torch.equal(cut.dequantise(), plain) and plain.numel() == 64 * 32
    with pytest.raises(ConfigError, match=r"down_proj\.weight cannot be shared by 4 ranks: its 16 inputs"):
        part = RankPart(Groups(Layout(tp=4), 0))
        part.prepare(whole_model({"heads": 4, "kv_heads": 4}))
        part.cut_quantized(f"{block}.mlp.down_proj.weight", stored)


def test_a_bias_is_added_once() -> None:
    """The whole model's biases are not small, so adding one twice would show; here it is said outright."""
    shape = {"heads": 4, "kv_heads": 4, "experts": 4}

    def biases(groups: Groups) -> set[str]:
        model = build_rank(shape, groups).model
        return {name for name, _ in model.named_parameters() if name.endswith(".bias")}

    held = on_ranks(Layout(tp=4, ep=2), biases)
    every = [name for names in held for name in names]
    assert len(every) == len(set(every)) == 2 * (1 + 4)  # two layers: one dense, four experts
