"""GPTQ by llm-compressor, in its own environment: a Llama folder and token ids in, plain weights out.

    PEERS_PYTHON benchmarks/workers/llmcompressor_gptq.py LLAMA_FOLDER ROWS.json OUT.safetensors

4 bits, symmetric, groups of 128, all linear layers but the head; everything else as the package has it by
default. The weights that come out are what the integers mean, fp32, under Llama's names. Imports nothing of
this project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

GROUP_SIZE = 128


def main(folder: str, rows_file: str, out: str) -> int:
    """Quantise, check that 16 values are left of each group, and write."""
    rows = json.loads(Path(rows_file).read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    dataset = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    oneshot(
        model=model,
        tokenizer=folder,
        dataset=dataset,
        recipe=GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"]),
        max_seq_length=max(map(len, rows)),
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )
    names = [name for name, module in model.named_modules() if hasattr(module, "weight_scale")]
    assert len(names) == 7 * model.config.num_hidden_layers, names
    weights = {f"{name}.weight": model.get_submodule(name).weight.detach().float() for name in names}
    for name, weight in weights.items():
        most = max(len(group.unique()) for group in weight[:16].reshape(-1, GROUP_SIZE))
        assert most <= 16, f"{name} has groups of {most} values"
    save_file({name: weight.contiguous() for name, weight in weights.items()}, out)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
