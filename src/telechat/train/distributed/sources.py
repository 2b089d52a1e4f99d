"""Whole weights, one tensor at a time, for engines that keep a part: from a folder, or drawn afresh.

Knows nothing of ranks; it is told which tensors are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor

from telechat.checkpoint import resolve_model
from telechat.checkpoint.names import canonical_names
from telechat.checkpoint.weights import open_weights
from telechat.models import TeleChatConfig, TeleChatModel, parameter_table

# Official names that are wanted -> (name, whole tensor), in any order. A tensor may be read and not used.
WeightSource = Callable[[Collection[str]], Iterator[tuple[str, Tensor]]]


def model_source(model: TeleChatModel) -> WeightSource:
    """The weights of a model that is in memory."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def read(wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor) for name, tensor in tensors.items() if name in wanted)

    return read


def folder_source(path_or_name: str) -> WeightSource:
    """The weights of a model folder that is not quantised; only files with something wanted are read."""

    def read(wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        stored = open_weights(Path(resolve_model(path_or_name)))
        official = {name: table for table, name in canonical_names(stored.tensors).items()}
        names = {name for name, table in official.items() if table in wanted}
        return ((official[name], tensor) for name, tensor in stored.stream(names))

    return read


def fresh_source(config: TeleChatConfig, *, seed: int) -> WeightSource:
    """The weights that `telechat.models.initialise` would give a whole model on the CPU, in fp32."""

    def read(wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameter_table(config):
            if parameter.kind == "norm":
                tensor = torch.ones(parameter.shape)
            elif parameter.kind == "bias":
                tensor = torch.zeros(parameter.shape)
            else:  # drawn even where it is not wanted: each draw depends on those before it
                tensor = torch.empty(parameter.shape)
                tensor.normal_(0.0, config.initializer_range, generator=generator)
            if parameter.name in wanted:
                yield parameter.name, tensor

    return read
