"""Rotary tables of MindFormers' schemes against those MindSpore made."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tests.golden.recorded import DATA

from telechat.layers.rotary import RopeSettings, RotaryTables

FOLDER = DATA / "mindspore-rope"
CASES = json.loads((FOLDER / "meta.json").read_text(encoding="utf-8"))
# MindSpore computes alpha and the base in fp32, so its angle at position p is off by about 1e-7 * p.
ATOL = 5e-5
ALPHA_RTOL = 2e-6


@pytest.fixture(scope="module")
def tables() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "rope.npz") as content:
        return {name: content[name] for name in content.files}


def dynamic(case: dict[str, Any]) -> RopeSettings:
    trained = case["max_position_embedding"]
    return RopeSettings(
        scheme="mindformers-dynamic",
        base=case["theta"],
        training_length=trained,
        base_length=case["base_seqlen"] or trained,
        table_dtype="float32",
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['case']}-{case['L']}")
def test_dynamic(case: dict[str, Any], tables: dict[str, np.ndarray]) -> None:
    settings, length, head_dim = dynamic(case), case["L"], case["head_dim"]
    alpha, mscale = settings.stretch(length)
    assert alpha ** (head_dim / (head_dim - 2)) == pytest.approx(case["ntk_alpha"], rel=ALPHA_RTOL)
    assert mscale == pytest.approx(case["mscale"], rel=1e-6)
    ours = RotaryTables(settings, head_dim)
    for kind, positions in (("prefill", None), ("decode", torch.tensor([length - 1]))):
        expected = [
            torch.from_numpy(tables[f"dyn{case['case']}_{kind}_{length}_{f}"]) for f in ("cos", "sin")
        ]
        rows = torch.arange(len(expected[0])) if positions is None else positions
        for found, table in zip(ours.rows(rows, length), expected, strict=True):
            torch.testing.assert_close(found, table, atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("static_None_1", {"scheme": "none"}),
        ("static_NTK_1", {"scheme": "ntk-static", "factor": 1.0}),
        ("static_NTK_4", {"scheme": "ntk-static", "factor": 4.0}),
        ("static_PI_2", {"scheme": "pi", "factor": 2.0}),
    ],
)
def test_static(name: str, settings: dict[str, Any], tables: dict[str, np.ndarray]) -> None:
    rope = RopeSettings(table_dtype="float32", training_length=32, base_length=32, **settings)
    expected = [torch.from_numpy(tables[f"{name}_{f}"]) for f in ("cos", "sin")]
    found = RotaryTables(rope, 16).rows(torch.arange(48), 48)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_every_table_is_tested(tables: dict[str, np.ndarray]) -> None:
    dynamic_names = {
        f"dyn{case['case']}_{kind}_{case['L']}" for case in CASES for kind in ("prefill", "decode")
    }
    static_names = {"static_None_1", "static_NTK_1", "static_NTK_4", "static_PI_2"}
    assert {name.rsplit("_", 1)[0] for name in tables} == dynamic_names | static_names
