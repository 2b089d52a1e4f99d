"""A checkpoint of any format with a PEFT adapter merged into it, streamed.

The weights are never in memory together; the adapter's matrices are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from telechat.checkpoint.adapter import check_fits_model
from telechat.checkpoint.adapter_folder import read_adapter
from telechat.checkpoint.formats.lazy import HeldTensor
from telechat.checkpoint.formats.table import Checkpoint
from telechat.checkpoint.mindspore.lora import with_product


def with_adapter(checkpoint: Checkpoint, folder: Path, scaling: float | None = None) -> Checkpoint:
    """The checkpoint with an adapter in its weights.

    Args:
        scaling: of the product of the matrices; by default what the adapter's config says.

    Raises:
        CheckpointError, ConfigError: the adapter cannot be read, or belongs to another model.
    """
    adapter = read_adapter(folder, checkpoint.config)
    check_fits_model(adapter, checkpoint.config)
    tensors = dict(checkpoint.tensors)
    for layer, low_rank in adapter.modules.items():
        name = f"{layer}.weight"
        magnitude = None if low_rank.magnitude is None else HeldTensor(low_rank.magnitude)
        tensors[name] = with_product(
            tensors[name],
            HeldTensor(low_rank.a),
            HeldTensor(low_rank.b),
            adapter.scale(layer) if scaling is None else scaling,
            magnitude,
        )
    return replace(checkpoint, tensors=tensors, format=f"{checkpoint.format} with adapter")
