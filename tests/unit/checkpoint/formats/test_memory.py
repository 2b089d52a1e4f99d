"""Memory of a conversion does not grow with the model: a process of its own, watched by the system."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from telechat.models import TeleChatConfig, parameter_table

pytest.importorskip("resource", reason="the system does not tell the peak memory of a process")

# 300 MB in tensors of at most 6 MB.
CONFIG = TeleChatConfig(
    vocab_size=2048, hidden_size=768, num_layers=20, num_heads=8, num_kv_heads=4, ffn_hidden_size=2048
)
SCRIPT = """
import resource, sys
from telechat.cli.main import main
from telechat.checkpoint.formats import convert, opening
import telechat.cli.checkpoint_convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status = main(sys.argv[1:])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024, file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.slow
def test_peak(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    tensors = {p.name: torch.zeros(p.shape) for p in parameter_table(CONFIG)}
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    largest = max(tensor.nbytes for tensor in tensors.values())
    save_file(tensors, source / "model.safetensors")
    del tensors
    (source / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    words = [
        "checkpoint",
        "convert",
        str(source),
        str(tmp_path / "out"),
        "--to",
        "llama",
        "--dtype",
        "bfloat16",
    ]
    command = [sys.executable, "-c", SCRIPT, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    grown = int(done.stderr.splitlines()[-1])
    assert num_bytes > 280e6
    assert grown < 2 * largest + 200e6
