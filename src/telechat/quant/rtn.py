"""Round to nearest: each weight by itself, without calibration."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from telechat.models import TeleChatModel
from telechat.models.quantized import quantize_layers, round_parameter
from telechat.ops.quantized import QuantizedWeight, WeightScheme

# (name by the parameter table, weight [out, in]) -> the quantised weight.
RoundParameter = Callable[[str, Tensor], QuantizedWeight]


def round_nearest(scheme: WeightScheme) -> RoundParameter:
    """The method, for `quantize`."""
    return lambda name, weight: round_parameter(name, weight, scheme)


def quantize_model(model: TeleChatModel, bits: int, group_size: int = 32) -> TeleChatModel:
    """Round a model's linear layers and head to nearest, in place, layer by layer; returns it.

    Raises:
        ConfigError: no such bits or group size, a layer that does not divide into groups, weights that are
            not finite, or a model that is quantised already.
    """
    quantize_layers(model, WeightScheme(bits, group_size))
    return model
