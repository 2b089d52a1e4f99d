"""What TeleChat is: configuration, parameter table, decoder, cache and the published sizes."""

from telechat.models.building import build_model, initialise
from telechat.models.cache import KVCache
from telechat.models.config import TeleChatConfig
from telechat.models.decoder import RopeMode, TeleChatModel, Trace
from telechat.models.parameters import (
    Parameter,
    count_active_parameters,
    count_parameters,
    parameter_table,
)
from telechat.models.presets import PRESETS, preset, published_size

__all__ = [
    "PRESETS",
    "KVCache",
    "Parameter",
    "RopeMode",
    "TeleChatConfig",
    "TeleChatModel",
    "Trace",
    "build_model",
    "count_active_parameters",
    "count_parameters",
    "initialise",
    "parameter_table",
    "preset",
    "published_size",
]
