"""Low-rank adapters: their record, what they do to a weight, and whether they fit a model.

An adapter has the layers of the parameter table, however its files spell them (`adapter_folder`). Knows
nothing of training or serving.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from telechat.checkpoint.adapter_config import AdapterConfig
from telechat.errors import CheckpointError
from telechat.models import TeleChatConfig, TeleChatModel, parameter_table
from telechat.models.adapters import AdapterLayers


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one linear layer with weight W [out, in].

    Attributes:
        a: [r, in].
        b: [out, r]; W becomes W + scale * b @ a, with the scale of the configuration.
        magnitude: [out], with DoRA only: each row of that sum is then scaled to this length.
    """

    a: Tensor
    b: Tensor
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Adapter:
    """A low-rank adapter of a TeleChat model.

    Attributes:
        config: ranks and scales; its names and patterns are those of the parameter table.
        modules: layer by the parameter table, without `.weight` -> its matrices.
    """

    config: AdapterConfig
    modules: Mapping[str, LowRank]

    def scale(self, module: str) -> float:
        """Factor of a layer's product b @ a."""
        return self.config.scale(module)

    @property
    def max_rank(self) -> int:
        """The highest rank of all layers; 0 without any."""
        return max((len(low_rank.a) for low_rank in self.modules.values()), default=0)

    def delta(self, module: str) -> Tensor:
        """scale * b @ a, fp32 [out, in]."""
        low_rank = self.modules[module]
        return (low_rank.b.float() @ low_rank.a.float()) * self.scale(module)

    def scaled_layers(self) -> AdapterLayers:
        """The matrices as executors take them, fp32, the scale in b; not for an adapter with magnitudes."""
        assert all(low_rank.magnitude is None for low_rank in self.modules.values())
        return {
            name: (low_rank.a.float(), low_rank.b.float() * self.scale(name))
            for name, low_rank in self.modules.items()
        }

    def merged(self, module: str, weight: Tensor) -> Tensor:
        """The layer's weight [out, in] with the adapter in it, computed in fp32, in the weight's dtype."""
        changed = weight.float() + self.delta(module).to(weight.device)
        magnitude = self.modules[module].magnitude
        if magnitude is not None:
            changed *= (magnitude.float().to(weight.device) / changed.norm(dim=1))[:, None]
        return changed.to(weight.dtype)


def adaptable_layers(config: TeleChatConfig) -> dict[str, tuple[int, int]]:
    """Layer -> (out, in) of all layers that an adapter may change, in the table's order."""
    return {
        parameter.name.removesuffix(".weight"): (parameter.shape[0], parameter.shape[1])
        for parameter in parameter_table(config)
        if parameter.kind in ("linear", "head")
    }


@torch.no_grad()
def merge_adapter(model: TeleChatModel, adapter: Adapter) -> None:
    """Add an adapter to a model's weights, for good.

    Raises:
        CheckpointError: a weight that is stored in integers, or a layer that the model does not have.
    """
    check_fits_model(adapter, model.config)
    for name in adapter.modules:
        layer = model.get_submodule(name)
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, torch.nn.Parameter):
            raise CheckpointError(
                f"{name} is quantised; an adapter can be merged into floating-point weights only.",
                hint="Merge it into the unquantised model, then quantise that.",
            )
        weight.copy_(adapter.merged(name, weight))


def check_fits_model(adapter: Adapter, config: TeleChatConfig) -> None:
    """Make sure that every layer of an adapter is one of the model's, with its widths.

    Raises:
        CheckpointError: names the layer and both shapes.
    """
    layers = adaptable_layers(config)
    for name, low_rank in adapter.modules.items():
        if name not in layers:
            raise unknown_layer(name, config)
        rank, (width_out, width_in) = len(low_rank.a), layers[name]
        for role, tensor, expected in (
            ("lora_A", low_rank.a, (rank, width_in)),
            ("lora_B", low_rank.b, (width_out, rank)),
            ("lora_magnitude_vector", low_rank.magnitude, (width_out,)),
        ):
            if tensor is not None and tuple(tensor.shape) != expected:
                raise misshapen(f"{name}.{role}", tuple(tensor.shape), expected)


def unknown_layer(name: str, config: TeleChatConfig) -> CheckpointError:
    """The refusal of an adapter for a layer that the model does not have."""
    return CheckpointError(
        f"The adapter changes {name}; this model of {config.num_layers} layers has no such linear layer.",
        hint="Use the adapter with the model that it was trained on.",
    )


def misshapen(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> CheckpointError:
    """The refusal of a tensor that does not fit the model."""
    return CheckpointError(
        f"{name} has shape {list(shape)}; this model and the adapter's rank ask for {list(expected)}.",
        hint="Use the adapter with the model that it was trained on.",
    )
