"""Layers that an independent library quantised: read exactly, and our own rounding is no worse than its."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.shared_data import needs_shared, shared_path
from torch import Tensor

from telechat.checkpoint.gptq import Codes, pack_zeros, unpack_zeros
from telechat.quant.gptq import dequantize, quantize_linear

pytestmark = needs_shared

CASES = [
    f"w{bits}_{sym}_{order}" for bits in (4, 8) for sym in ("sym", "asym") for order in ("noact", "actorder")
]


def recorded(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    manifest = json.loads(shared_path("golden/gptq/manifest.json").read_text())
    return manifest["cases"][case], load_file(shared_path(f"golden/gptq/{case}.safetensors"))


def as_stored(tensors: dict[str, Tensor], version: str) -> dict[str, Tensor]:
    packed = {key: tensors[key] for key in ("qweight", "scales", "g_idx")}
    return {**packed, "qzeros": tensors[f"qzeros_{version}"]}


@pytest.mark.parametrize("case", CASES)
def test_recorded_layers_unpack_exactly(case: str) -> None:
    facts, tensors = recorded(case)
    source = load_file(shared_path("golden/gptq/source.safetensors"))
    first = Codes.unpack(as_stored(tensors, "v1"), facts["bits"])
    second = Codes.unpack(as_stored(tensors, "v2"), facts["bits"], "gptq_v2")
    assert torch.equal(first.codes_NK, second.codes_NK) and torch.equal(first.zeros_GN, second.zeros_GN)
    # The recorded weight was rounded to fp16; ours is exact.
    weight = dequantize(as_stored(tensors, "v1"), facts["bits"])
    assert torch.allclose(weight.t(), tensors["dequant_in_out"], rtol=0, atol=2e-4)
    out = source["x"].float() @ weight.t() + tensors["bias"].float()
    assert (out - tensors["y_ref"]).abs().max() <= 1e-3 * tensors["y_ref"].abs().max()
    repacked = second.pack(facts["bits"], "gptq_v2")
    for key, tensor in as_stored(tensors, "v2").items():
        assert torch.equal(repacked[key], tensor), key


@pytest.mark.parametrize("case", CASES)
def test_our_error_is_no_larger(case: str) -> None:
    facts, _ = recorded(case)
    source = load_file(shared_path("golden/gptq/source.safetensors"))
    x = source["calib_x"].float()
    packed = quantize_linear(
        source["weight"], source["calib_x"], facts["bits"], 128, facts["sym"], facts["desc_act"], damp=0.01
    )
    error = dequantize(packed, facts["bits"]) - source["weight"].float()
    assert float((error @ (x.t() @ x) * error).sum()) <= 1.02 * facts["proxy_loss"]
    if facts["desc_act"]:
        assert not torch.equal(packed["g_idx"].sort().values, packed["g_idx"])


def test_a_zero_point_of_zero_borrows() -> None:
    """Row 3 has zero point 0 in the first group; the first format's word then differs in two fields."""
    _, tensors = recorded("w4_asym_noact")
    zeros = unpack_zeros(tensors["qzeros_v1"], 4)
    assert int(zeros[0, 3]) == 0 and torch.equal(zeros, unpack_zeros(tensors["qzeros_v2"], 4, "gptq_v2"))
    assert torch.equal(pack_zeros(zeros, 4, "gptq_v2"), tensors["qzeros_v2"])
