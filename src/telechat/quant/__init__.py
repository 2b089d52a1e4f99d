"""Quantisation: a model rounded to few bits, in memory or as a folder."""

from telechat.quant.blockwise import LayerDone
from telechat.quant.calibration import Calibration
from telechat.quant.config import METHODS, QuantizeConfig
from telechat.quant.folder import quantize
from telechat.quant.int8_config import Int8Config
from telechat.quant.rtn import quantize_model

__all__ = [
    "METHODS",
    "Calibration",
    "Int8Config",
    "LayerDone",
    "QuantizeConfig",
    "quantize",
    "quantize_model",
]
