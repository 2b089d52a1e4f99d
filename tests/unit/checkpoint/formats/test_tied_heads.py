"""A head that is stored although the config ties it must be the embedding, in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.unit.checkpoint.formats.samples import DENSE, random_model

from telechat.checkpoint import save_model
from telechat.checkpoint.formats.lazy import same_numbers
from telechat.checkpoint.formats.opening import open_checkpoint
from telechat.cli.main import main
from telechat.errors import CheckpointError


@pytest.mark.parametrize("to", ["hf", "llama", "mindspore", "dcp"])
@pytest.mark.parametrize("is_equal", [True, False])
def test_stored_although_tied(to: str, is_equal: bool, tmp_path: Path) -> None:
    model = random_model(DENSE)
    if is_equal:
        with torch.no_grad():
            model.lm_head.weight.copy_(model.transformer.word_embeddings.weight)
    save_model(model, tmp_path / "model")
    out = tmp_path / "out"
    assert main(["checkpoint", "convert", str(tmp_path / "model"), str(out), "--to", to]) == 0
    raw = json.loads((out / "config.json").read_text())
    raw.pop("telechat_config", None)
    (out / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": True}))
    if not is_equal:
        with pytest.raises(CheckpointError, match="ties the head to the embedding"):
            open_checkpoint(out)
        return
    found = open_checkpoint(out)
    assert "lm_head.weight" not in found.tensors
    embedding = open_checkpoint(tmp_path / "model").tensors["transformer.word_embeddings.weight"]
    assert same_numbers(found.tensors["transformer.word_embeddings.weight"], embedding)
