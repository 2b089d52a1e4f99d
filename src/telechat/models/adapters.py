"""Low-rank adapters beside a model's weights, each for some rows of a batch.

What executors are given of an adapter, and how one that runs a model's modules applies it: a hook on every
linear layer adds the adapters' products to what the layer returns. Knows no files, requests or ranks. Shapes:
T rows of a batch, L rows whose results are wanted, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from telechat.models.decoder import TeleChatModel
from telechat.models.parameters import parameter_table

# Layer by the parameter table, without `.weight` -> A [r, in] and B [out, r] with the scale in it: what the
# layer returns for x gains B A x.
AdapterLayers = Mapping[str, tuple[Tensor, Tensor]]
# (row after the run, number of its adapter or None), in order. Empty where no row has an adapter.
AdapterRuns = Sequence[tuple[int, int | None]]
HEAD = "lm_head"


def adapted_spans(runs: AdapterRuns) -> Iterator[tuple[int, int, int]]:
    """(first row, row after the last, adapter) of the runs that have one."""
    start = 0
    for stop, number in runs:
        if number is not None:
            yield start, stop, number
        start = stop


def adapter_of_row(runs: AdapterRuns, row: int) -> int | None:
    """The adapter of one row."""
    return next((number for start, stop, number in adapted_spans(runs) if start <= row < stop), None)


class ModuleAdapters:
    """The adapters of a model whose modules compute.

    Args:
        model: its linear layers have hooks for as long as there is an adapter.
    """

    def __init__(self, model: TeleChatModel) -> None:
        self._model = model
        self._layers: dict[int, AdapterLayers] = {}
        self._hooks: list[RemovableHandle] = []
        self._spans: list[tuple[int, int, int]] = []

    def load(self, number: int, layers: AdapterLayers) -> None:
        """Take an adapter, onto the model's device and in its dtype."""
        device, dtype = self._model.device, self._model.dtype
        self._layers[number] = {
            name: (a.to(device, dtype), b.to(device, dtype)) for name, (a, b) in layers.items()
        }
        if not self._hooks:
            self._hooks = [
                module.register_forward_hook(partial(self._add, name))
                for name, module in _hidden_layers(self._model)
            ]

    def unload(self, number: int) -> None:
        """Give an adapter's memory back."""
        del self._layers[number]
        if not self._layers:
            self.clear()

    def clear(self) -> None:
        """Leave the model as it was."""
        self._layers = {}
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextmanager
    def applied(self, runs: AdapterRuns) -> Iterator[None]:
        """Within it, the model's layers take [1, T, in], and rows have the adapters of `runs`."""
        self._spans = list(adapted_spans(runs))
        try:
            yield
        finally:
            self._spans = []

    def add_to_logits(self, logits_LV: Tensor, hidden_LD: Tensor, numbers_L: Sequence[int | None]) -> None:
        """Add to logits what each row's adapter, if it has one, changes of the head."""
        for row, number in enumerate(numbers_L):
            pair = None if number is None else self._layers[number].get(HEAD)
            if pair is not None:
                a, b = pair
                logits_LV[row] += (hidden_LD[row] @ a.T) @ b.T

    def _add(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """As torch calls a forward hook."""
        for start, stop, number in self._spans:
            pair = self._layers[number].get(name)
            if pair is not None:
                a, b = pair
                output[0, start:stop] += (inputs[0][0, start:stop] @ a.T) @ b.T


def _hidden_layers(model: TeleChatModel) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers that see all rows of a batch: neither the head nor a mixture's experts."""
    for parameter in parameter_table(model.config):
        name = parameter.name.removesuffix(".weight")
        if parameter.kind == "linear" and ".local_experts." not in name:
            yield name, model.get_submodule(name)
