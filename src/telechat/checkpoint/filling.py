"""Stored tensors become a model's parameters, one after another, each made in its final form at once.

Weights that are stored in several tensors are put together when the last of them has come. Knows nothing of
configurations or of how a format is read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from telechat.checkpoint.ascend import AscendFormat
from telechat.checkpoint.matching import match_tensors, packed_layers
from telechat.checkpoint.names import EMBEDDING, HEAD
from telechat.checkpoint.packed import Expected, PackedFormat
from telechat.checkpoint.weights import StoredWeights
from telechat.device import CPU
from telechat.errors import CheckpointError
from telechat.layers.int8 import DynamicInt8Linear, StaticInt8Linear
from telechat.layers.quantized import set_module
from telechat.models import TeleChatConfig, TeleChatModel, parameter_table
from telechat.models.parameters import Parameter
from telechat.models.quantized import is_quantisable, put_weight, round_parameter
from telechat.ops.int8 import DynamicWeight, StaticWeight
from telechat.ops.pages import empty_pages
from telechat.ops.quantized import OrderedWeight, QuantizedWeight, WeightScheme

log = logging.getLogger(__name__)


class Part(Protocol):
    """One rank's part of a model that several ranks hold together.

    Attributes:
        rank: which one.
        tp, ep: how many ranks share the layers, and the experts.
    """

    @property
    def rank(self) -> int: ...
    @property
    def tp(self) -> int: ...
    @property
    def ep(self) -> int: ...

    def prepare(self, model: TeleChatModel) -> None:
        """Give a model without weights the structure of the part."""
        ...

    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters that the part keeps something of, with the shapes of what is kept; once prepared."""
        ...

    def cut(self, name: str, tensor: Tensor) -> Tensor | None:
        """The part of a tensor of the parameter table, a view; None when nothing of it is kept."""
        ...

    def cut_quantized(self, name: str, weight: QuantizedWeight) -> QuantizedWeight | None:
        """As `cut`, of a quantised weight."""
        ...

    def cut_int8(
        self, name: str, weight: StaticWeight | DynamicWeight
    ) -> StaticWeight | DynamicWeight | None:
        """As `cut`, of a weight with int8 activations."""
        ...


class Filling:
    """Gives every parameter of a model built on `meta` its memory and its values, one tensor at a time.

    Args:
        part: what of each tensor is kept.
        packed: how weights stored in integers are stored.
        table: what is stored, if that is one rank's part already; then `part` is None.
        rounding: round linear layers and head to this.
    """

    def __init__(
        self,
        model: TeleChatModel,
        *,
        device: torch.device,
        dtype: torch.dtype,
        part: Part | None = None,
        packed: PackedFormat | None = None,
        table: Sequence[Parameter] | None = None,
        rounding: WeightScheme | None = None,
    ) -> None:
        self.model = model
        self.device, self.dtype = device, dtype
        self.part = part
        self.rounding = rounding
        self._packed, self._table = packed, table
        self._collected: dict[str, dict[str, Tensor]] = {}
        self._empty = empty_pages if device == CPU else None
        parameters = parameter_table(model.config)
        self._rounded = {p.name for p in parameters if rounding and is_quantisable(p)}

    @torch.no_grad()
    def fill(self, stored_config: TeleChatConfig, weights: StoredWeights) -> None:
        """Read everything. `stored_config` is what config.json says; the model may have a head of its own."""
        table = parameter_table(stored_config) if self._table is None else self._table
        names = match_tensors(stored_config, weights, self._packed, table)
        layers = packed_layers(table, names, self._packed)
        owners = {tensor: name for name, tensors in layers.items() for tensor in tensors}
        places = {stored: name for name, stored in names.items()}
        is_own_head = stored_config.tie_word_embeddings and not self.model.config.tie_word_embeddings
        for stored, tensor in weights.stream(places):
            name, is_owned = places[stored], weights.owns_memory
            if name in owners:
                self._collect(
                    owners[name], layers[owners[name]], name, tensor if is_owned else tensor.clone()
                )
                continue
            if is_own_head and name == EMBEDDING:
                self._take(HEAD, tensor, is_owned=False)
            self._take(name, tensor, is_owned=is_owned)

    def _collect(self, weight: str, expected: Expected, name: str, tensor: Tensor) -> None:
        """One of a weight's tensors; with the last one, the weight itself."""
        parts = self._collected.setdefault(weight, {})
        parts[name] = tensor
        if len(parts) < len(expected):
            return
        del self._collected[weight]
        assert self._packed is not None
        spare = parts.pop(weight.removesuffix("weight") + "bias", None)
        if spare is not None and bool(spare.any()):
            raise CheckpointError(
                f"The checkpoint holds a bias for {weight}, which this model lacks, and it is not zero.",
                hint="Check that config.json belongs to these weights.",
            )
        loaded = self._packed.assemble(weight, parts)
        if isinstance(loaded, QuantizedWeight):
            self._put(weight, loaded)
        elif isinstance(loaded, OrderedWeight) and self.part is None:
            self._put(weight, loaded.weight, loaded.order.to(self.device))
        elif isinstance(loaded, StaticWeight | DynamicWeight):
            self._put_int8(weight, loaded)
        elif isinstance(loaded, Tensor) and isinstance(self._packed, AscendFormat):
            self._take(weight, loaded, is_owned=True)
        else:
            # No form for it in integers, or none that can be cut.
            log.info("%s is held as %s: its groups cannot be kept", weight, self.dtype)
            plain = loaded.dequantise(self.dtype) if isinstance(loaded, OrderedWeight) else loaded
            self._take(weight, plain, is_owned=True)

    def _take(self, name: str, tensor: Tensor, *, is_owned: bool) -> None:
        kept = tensor if self.part is None else self.part.cut(name, tensor)
        if kept is None:
            return
        if name in self._rounded and self.rounding is not None:
            rounded = round_parameter(name, kept.to(self.device), self.rounding, empty=self._empty)
            put_weight(self.model, name, rounded)
            return
        owner, _, leaf = name.rpartition(".")
        if is_owned and kept is tensor and (tensor.dtype, tensor.device) == (self.dtype, self.device):
            values = tensor
        else:
            make = self._empty or (lambda shape, dtype: torch.empty(shape, dtype=dtype, device=self.device))
            values = make(tuple(kept.shape), self.dtype).copy_(kept)
        setattr(self.model.get_submodule(owner), leaf, nn.Parameter(values))

    def _put_int8(self, name: str, weight: StaticWeight | DynamicWeight) -> None:
        kept = weight if self.part is None else self.part.cut_int8(name, weight)
        if kept is None:
            return
        if kept is not weight:
            kept = kept.copied()  # a view would keep the whole alive
        weight = kept if self.device == CPU else kept.to(self.device)
        module_name = name.removesuffix(".weight")
        old = self.model.get_submodule(module_name)
        assert isinstance(old, nn.Linear)
        if tuple(weight.weight.shape) != (old.out_features, old.in_features):
            raise CheckpointError(
                f"{name} holds integers of shape {list(weight.weight.shape)}; config.json says "
                f"{[old.out_features, old.in_features]}.",
                hint="Check that config.json belongs to these weights.",
            )
        if isinstance(weight, StaticWeight):
            set_module(self.model, module_name, StaticInt8Linear(weight))
            return
        bias = getattr(old, "bias", None)
        set_module(self.model, module_name, DynamicInt8Linear(weight, bias))

    def _put(self, name: str, weight: QuantizedWeight, order: Tensor | None = None) -> None:
        kept = weight if self.part is None else self.part.cut_quantized(name, weight)
        if kept is not None:
            # Of a part, a copy: a view would keep the whole alive.
            qweight, scales = (
                tensor.to(self.device) if kept is weight else tensor.contiguous().clone().to(self.device)
                for tensor in (kept.qweight, kept.scales)
            )
            put_weight(self.model, name, QuantizedWeight(weight.scheme, qweight, scales), order)
