"""The TeleChat language models: load, chat, generate, serve, train.

Importing this package costs nothing: the public names are imported when first used, so `import telechat`
loads neither torch nor the server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from telechat.checkpoint import load_model as load_model
    from telechat.engine import LLM as LLM
    from telechat.engine import SamplingParams as SamplingParams
    from telechat.engine import StructuredOutputs as StructuredOutputs
    from telechat.quant import QuantizeConfig as QuantizeConfig
    from telechat.quant import quantize as quantize
    from telechat.tokenizer import load_tokenizer as load_tokenizer

_PUBLIC = {
    "LLM": "telechat.engine",
    "QuantizeConfig": "telechat.quant",
    "SamplingParams": "telechat.engine",
    "StructuredOutputs": "telechat.engine",
    "load_model": "telechat.checkpoint",
    "load_tokenizer": "telechat.tokenizer",
    "quantize": "telechat.quant",
}

__all__ = [
    "LLM",
    "QuantizeConfig",
    "SamplingParams",
    "StructuredOutputs",
    "__version__",
    "load_model",
    "load_tokenizer",
    "quantize",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'telechat' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
