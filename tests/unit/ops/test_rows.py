"""Rows of a table, copied without torch's threads."""

from __future__ import annotations

import pytest
import torch

from telechat.ops.rows import take_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0,), (5,), (2, 3)])
def test_equals_indexing(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    table = torch.randn(7, 12).to(dtype)
    rows = torch.randint(0, 7, shape)

    found = take_rows(table, rows)

    assert found.dtype == dtype
    assert torch.equal(found, table[rows])


def test_a_weight_without_gradients_being_taken_is_copied_too() -> None:
    weight = torch.nn.Parameter(torch.randn(7, 12))
    with torch.inference_mode():
        assert torch.equal(take_rows(weight, torch.tensor([6, 0])), weight[[6, 0]])


def test_gradients_flow_where_they_are_wanted() -> None:
    weight = torch.nn.Parameter(torch.randn(7, 12))
    take_rows(weight, torch.tensor([3, 3])).sum().backward()
    assert weight.grad is not None and weight.grad[3, 0] == 2


def test_a_table_that_is_a_view_with_gaps_is_read_right() -> None:
    table = torch.randn(12, 7).T
    assert torch.equal(take_rows(table, torch.tensor([2, 5])), table[[2, 5]])
