"""Weights one at a time: those of a folder and fresh ones are those that a whole model would have."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.distributed.train_cases import make_config

from telechat.checkpoint import load_model
from telechat.models import build_model, initialise
from telechat.train.distributed.sources import folder_source, fresh_source


def test_a_folder(tiny_model_folder: Path) -> None:
    model = dict(load_model(tiny_model_folder, device="cpu", dtype="float32").named_parameters())
    wanted = set(list(model)[::2])
    found = dict(folder_source(str(tiny_model_folder))(wanted))
    assert set(found) == wanted
    for name, tensor in found.items():
        assert torch.equal(tensor.float(), model[name]), name


def test_fresh_weights() -> None:
    config = make_config(experts=2)
    model = build_model(config)
    initialise(model, seed=5)
    wanted = {name for name, _ in model.named_parameters() if ".h.1." in name}
    found = dict(fresh_source(config, seed=5)(wanted))
    assert set(found) == wanted
    for name, tensor in found.items():
        assert torch.equal(tensor, model.get_parameter(name)), name
