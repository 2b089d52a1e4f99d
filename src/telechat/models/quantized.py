"""Which weights of a model are quantised, and the model with them in place.

By the parameter table: every linear layer and the head. Routers, norms, biases and the embedding stay as they
are. A head that is the embedding gets a weight of its own, quantised, because tokens are looked up in the
embedding as it is: the model is not tied any more. Knows nothing of files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from telechat.errors import ConfigError
from telechat.layers.int8 import DynamicInt8Linear, StaticInt8Linear
from telechat.layers.quantized import QuantizedLinear, set_module
from telechat.models.config import TeleChatConfig
from telechat.models.decoder import TeleChatModel
from telechat.models.parameters import Parameter, parameter_table
from telechat.ops.quantized import Empty, QuantizedWeight, WeightScheme, round_to_nearest

HEAD_MODULE = "lm_head"


def is_quantisable(parameter: Parameter) -> bool:
    """Whether this weight is one that quantisation replaces."""
    return parameter.kind in ("linear", "head")


def untied(config: TeleChatConfig) -> TeleChatConfig:
    """The configuration once quantised: the head has a weight of its own."""
    return config.replace(tie_word_embeddings=False)


def check_scheme(config: TeleChatConfig, scheme: WeightScheme) -> None:
    """Raise where a weight does not divide into groups.

    Raises:
        ConfigError: names the first such layer, its size and the group sizes that would do for all.
    """
    weights = [parameter for parameter in parameter_table(untied(config)) if is_quantisable(parameter)]
    for parameter in weights:
        problem = scheme.obstacle(parameter.shape[1])
        if problem is None:
            continue
        fitting = [scheme.fitting_group_sizes(other.shape[1]) for other in weights]
        common = [size for size in fitting[0] if all(size in sizes for sizes in fitting)]
        choice = f"Choose a group size of {' or '.join(map(str, common))}." if common else None
        raise ConfigError(
            f"{parameter.name} cannot be quantised: {problem}.",
            hint=choice or "No group size of 32, 64 or 128 divides every layer of this model.",
        )


def round_parameter(
    name: str, weight: Tensor, scheme: WeightScheme, *, empty: Empty | None = None
) -> QuantizedWeight:
    """Round the weight of that name to nearest, on its device.

    Raises:
        ConfigError: it holds numbers that are not finite, or does not divide into groups; names it.
    """
    rows, columns = weight.shape
    problem = scheme.obstacle(columns)
    if problem:
        raise ConfigError(f"{name} cannot be quantised: {problem}.", hint="Use smaller groups.")
    out = QuantizedWeight.allocate(rows, columns, scheme, device=weight.device, empty=empty)
    try:
        return round_to_nearest(weight, scheme, out=out)
    except ConfigError as error:
        raise ConfigError(f"{name} cannot be quantised: {error.message}") from error


def put_weight(model: TeleChatModel, name: str, weight: QuantizedWeight, order: Tensor | None = None) -> None:
    """Put a quantised weight in the place of the weight of that name; the layer keeps its bias.

    Args:
        order: of its inputs, see `QuantizedLinear`.
    """
    module_name = name.removesuffix(".weight")
    old = model.get_submodule(module_name) if module_name != HEAD_MODULE else None
    bias = getattr(old, "bias", None)
    set_module(model, module_name, QuantizedLinear(weight, bias if isinstance(bias, Tensor) else None, order))


@torch.no_grad()
def quantize_layers(model: TeleChatModel, scheme: WeightScheme) -> None:
    """Round a model's weights to nearest in place, one after another; each float weight goes at once.

    Raises:
        ConfigError: a weight that cannot be quantised; the weights before it are quantised already only if
            it holds numbers that are not finite.
    """
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | StaticInt8Linear | DynamicInt8Linear):
            raise ConfigError(f"{name}.weight is quantised already.")
    check_scheme(model.config, scheme)
    config = untied(model.config)
    for parameter in parameter_table(config):
        if not is_quantisable(parameter):
            continue
        is_tied_head = parameter.kind == "head" and model.config.tie_word_embeddings
        source = (
            model.transformer.word_embeddings
            if is_tied_head
            else model.get_submodule(parameter.name.removesuffix(".weight"))
        )
        if isinstance(source, nn.Linear | nn.Embedding):  # not one of another rank's experts
            put_weight(model, parameter.name, round_parameter(parameter.name, source.weight.detach(), scheme))
    model.config = config


def scheme_of(model: nn.Module) -> WeightScheme | None:
    """How a model's layers are quantised; None when they are not."""
    return next((m.scheme for m in model.modules() if isinstance(m, QuantizedLinear)), None)
