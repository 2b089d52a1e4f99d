"""Quantisation: a model rounded to few bits, in memory or as a folder."""

from telechat.quant.config import METHODS, QuantizeConfig
from telechat.quant.folder import quantize
from telechat.quant.rtn import quantize_model

__all__ = ["METHODS", "QuantizeConfig", "quantize", "quantize_model"]
