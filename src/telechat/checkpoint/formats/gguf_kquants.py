"""llama.cpp's K-quants, by llama.cpp's own quantiser from the package llama-cpp-python.

The quantiser reads a GGUF file in fp16 or fp32 and writes another; both are plain files.
"""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path

from telechat.errors import CheckpointError, MissingExtraError

# Name -> llama.cpp's number for a file of it.
FILE_TYPES = {"Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}
SOURCE_TYPE = "F16"


def require_quantiser() -> None:
    """Raise MissingExtraError where llama-cpp-python is not installed."""
    try:
        importlib.import_module("llama_cpp")
    except ImportError as error:
        raise MissingExtraError("llama-cpp-python", "gguf") from error


def quantise(source: Path, target: Path, kind: str) -> None:
    """Write a K-quantised copy of a GGUF file, by one call of a foreign library that cannot be interrupted.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        CheckpointError: the quantiser refuses the file.
    """
    require_quantiser()
    llama_cpp = importlib.import_module("llama_cpp")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[kind]
    status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), params)
    if status:
        free = shutil.disk_usage(target.parent).free
        raise CheckpointError(
            f"llama.cpp's quantiser stopped with status {status}; {free / 1e9:.2f} GB are free in "
            f"{target.parent}.",
            hint="What it says of the reason is above. Run the command again: the file it reads is kept.",
        )
