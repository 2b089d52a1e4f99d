"""The parameter table describes the model exactly; published sizes have their published counts."""

from __future__ import annotations

import pytest
from tests.unit.models.small import KINDS

from telechat.models import (
    PRESETS,
    build_model,
    count_active_parameters,
    count_parameters,
    parameter_table,
)

# Byte totals of the released index files confirm the 7B, the 12B and the 115B.
COUNTS = {
    "telechat-7b": 7_200_018_432,
    "telechat-12b": 12_386_432_000,
    "telechat-12b-v2": 12_386_432_000,
    "telechat2-3b": 3_070_528_512,
    "telechat2-7b": 7_617_351_680,
    "telechat2-35b": 35_435_059_200,
    "telechat2-115b": 113_282_916_352,
    "telechat2-39b-a12b": 39_330_099_200,
}
NUM_TENSORS = {"telechat-7b": 302, "telechat-12b": 383, "telechat2-115b": 963}


@pytest.mark.parametrize("kind", KINDS)
def test_table_is_the_state_dict(kind: str) -> None:
    model = build_model(KINDS[kind], device="meta")
    table = parameter_table(KINDS[kind])
    assert {p.name: p.shape for p in table} == {n: tuple(v.shape) for n, v in model.state_dict().items()}
    assert [p.name for p in table] == [name for name, _ in model.named_parameters()]
    assert all(len(p.axes) == len(p.shape) for p in table)
    assert count_parameters(KINDS[kind]) == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    for parameter in parameter_table(KINDS[kind]):
        is_matrix = len(parameter.shape) == 2
        assert is_matrix == (parameter.kind in ("embedding", "linear", "router", "head"))
        assert (parameter.kind == "bias") == parameter.name.endswith(".bias")


def test_presets_have_their_published_sizes() -> None:
    assert {name: count_parameters(config) for name, config in PRESETS.items()} == COUNTS
    assert {name: len(parameter_table(PRESETS[name])) for name in NUM_TENSORS} == NUM_TENSORS


def test_active_parameters() -> None:
    assert round(count_active_parameters(PRESETS["telechat2-39b-a12b"]) / 1e9, 2) == 12.15
    assert count_active_parameters(PRESETS["telechat2-3b"]) == COUNTS["telechat2-3b"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name: str) -> None:
    model = build_model(PRESETS[name], device="meta")
    assert sum(value.numel() for value in model.parameters()) == COUNTS[name]
