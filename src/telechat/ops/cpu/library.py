"""Finds, builds if need be, and loads the shared library of the kernels.

Looked for: beside this file (an installed package), then in the cache folder, where it is built from the
sources on first use. The name holds a fingerprint of the sources: an outdated library is never loaded. Knows
the C structs and functions; knows nothing of tensors.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_size_t, c_uint8, c_void_p
from pathlib import Path
from typing import ClassVar

from filelock import FileLock

from telechat.errors import DeviceError
from telechat.ops.cpu import build

log = logging.getLogger(__name__)

Fields = list[tuple[str, type]]


class Range(Structure):
    """tc_range."""

    _fields_: ClassVar[Fields] = [("scale", c_float), ("offset", c_int32), ("by_row", c_int32)]


class Weight(Structure):
    """tc_weight."""

    _fields_: ClassVar[Fields] = [
        ("format", c_int32),
        ("group", c_int32),
        ("rows", c_int64),
        ("columns", c_int64),
        ("num_panels", c_int64),
        ("num_blocks", c_int64),
        ("panel_bytes", c_int64),
        ("data", c_void_p),
        ("range", Range),
        ("exponents", c_uint8 * 16),
        ("num_patches", c_int64),
    ]


class Source(Structure):
    """tc_source."""

    _fields_: ClassVar[Fields] = [
        ("x", c_void_p),
        ("gated_by", c_void_p),
        ("dtype", c_int32),
        ("stride", c_int64),
    ]


class Output(Structure):
    """tc_output."""

    _fields_: ClassVar[Fields] = [
        ("out", c_void_p),
        ("bias", c_void_p),
        ("dtype", c_int32),
        ("accumulate", c_int32),
        ("stride", c_int64),
    ]


class Cache(Structure):
    """tc_cache."""

    _fields_: ClassVar[Fields] = [
        *((name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        ("dtype", c_int32),
        *((name, c_int64) for name in ("num_kv_heads", "head_dim", "block_size")),
        *((name, c_int64) for name in ("block_stride", "head_stride", "token_stride")),
        *((name, c_int64) for name in ("scale_block_stride", "scale_head_stride")),
    ]


class Attention(Structure):
    """tc_attention."""

    _fields_: ClassVar[Fields] = [
        *((name, c_void_p) for name in ("queries", "out")),
        ("cache", Cache),
        ("dtype", c_int32),
        ("deterministic", c_int32),
        *((name, c_int64) for name in ("num_heads", "num_sequences", "num_decoding", "max_blocks")),
        *((name, c_void_p) for name in ("query_starts", "kv_lengths", "block_tables")),
    ]


class Rope(Structure):
    """tc_rope."""

    _fields_: ClassVar[Fields] = [
        *((name, c_void_p) for name in ("queries", "kv", "cos", "sin", "slots")),
        ("cache", Cache),
        ("dtype", c_int32),
        ("num_heads", c_int64),
    ]


class Expert(Structure):
    """tc_expert."""

    _fields_: ClassVar[Fields] = [
        *((name, POINTER(Weight)) for name in ("gate", "up", "down")),
        ("down_bias", c_void_p),
    ]


class Mixture(Structure):
    """tc_mixture."""

    _fields_: ClassVar[Fields] = [
        ("router", POINTER(Weight)),
        ("experts", POINTER(Expert)),
        *((name, c_int64) for name in ("num_experts", "first_expert", "num_local", "experts_per_token")),
        ("renormalise", c_int32),
        ("scaling_factor", c_float),
    ]


class Layer(Structure):
    """tc_layer."""

    _fields_: ClassVar[Fields] = [
        *((name, POINTER(Weight)) for name in ("query", "key_value", "dense", "gate", "up", "down")),
        *((name, c_void_p) for name in ("input_norm", "post_norm", "dense_bias", "down_bias")),
        ("mixture", POINTER(Mixture)),
        ("cache", Cache),
    ]


# tc_reduce: (values, how many, state).
Reduce = ctypes.CFUNCTYPE(None, c_void_p, c_int64, c_void_p)


class Decoder(Structure):
    """tc_decoder."""

    _fields_: ClassVar[Fields] = [
        *((name, c_int64) for name in ("num_layers", "hidden", "ffn", "num_heads")),
        ("layers", POINTER(Layer)),
        ("final_norm", c_void_p),
        ("head", POINTER(Weight)),
        ("eps", c_float),
        *((name, c_int32) for name in ("residual_post_norm", "deterministic")),
        ("reduce", Reduce),
        ("reduce_state", c_void_p),
    ]


class LowRank(Structure):
    """tc_low_rank."""

    _fields_: ClassVar[Fields] = [(name, POINTER(Weight)) for name in ("a", "b")]


class AdapterRun(Structure):
    """tc_adapter_run."""

    _fields_: ClassVar[Fields] = [("layers", POINTER(LowRank)), ("first", c_int64), ("count", c_int64)]


class Batch(Structure):
    """tc_batch."""

    _fields_: ClassVar[Fields] = [
        *((name, c_int64) for name in ("num_tokens", "num_sequences", "num_decoding")),
        *((name, c_int64) for name in ("max_blocks", "num_logits")),
        *((name, c_void_p) for name in ("query_starts", "kv_lengths", "block_tables", "slots")),
        *((name, c_void_p) for name in ("cos", "sin", "logit_rows", "x", "logits")),
        ("num_runs", c_int64),
        ("runs", POINTER(AdapterRun)),
    ]


# Name -> (result, arguments); a context is an opaque pointer.
_FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "tc_best_level": (c_int, []),
    "tc_context_new": (c_void_p, [c_int, c_int]),
    "tc_context_free": (None, [c_void_p]),
    "tc_huge_alloc": (c_void_p, [c_size_t]),
    "tc_huge_free": (None, [c_void_p, c_size_t]),
    "tc_weight_init": (c_int64, [POINTER(Weight)]),
    "tc_pack": (None, [c_void_p, POINTER(Weight), c_void_p, c_int]),
    "tc_pack_quantised": (None, [c_void_p, POINTER(Weight), c_void_p, c_void_p]),
    "tc_pack_w8a8": (None, [c_void_p, POINTER(Weight), c_void_p, c_void_p, c_void_p]),
    "tc_compact": (c_int64, [c_void_p, POINTER(Weight), POINTER(Weight)]),
    "tc_take_rows": (None, [c_void_p, POINTER(Weight), c_void_p, c_int64, c_void_p]),
    "tc_unpack": (None, [POINTER(Weight), c_void_p]),
    "tc_matmul": (
        None,
        [c_void_p, POINTER(Weight), POINTER(Source), c_int64, POINTER(Output), c_int64],
    ),
    "tc_norm": (None, [c_void_p] * 5 + [c_int64, c_int64, c_float, c_int]),
    "tc_swiglu": (None, [c_void_p] * 4 + [c_int64, c_int]),
    "tc_rope_and_store": (None, [c_void_p, POINTER(Rope), c_int64]),
    "tc_attend": (None, [c_void_p, POINTER(Attention)]),
    "tc_decode": (None, [c_void_p, POINTER(Decoder), POINTER(Batch)]),
    "tc_sample": (None, [c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p]),
}


def cache_folder() -> Path:
    """Where a library built on first use is kept: `kernels` in TELECHAT_CACHE (~/.cache/telechat)."""
    return Path(os.environ.get("TELECHAT_CACHE") or "~/.cache/telechat").expanduser() / "kernels"


def find() -> Path:
    """The library of these sources, built now if it is nowhere.

    Raises:
        build.BuildError: it cannot be built here.
        OSError: the cache folder cannot be written.
    """
    name = build.library_name()
    installed = Path(__file__).with_name(name)
    if installed.exists():
        return installed
    cached = cache_folder() / name
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cached.with_suffix(".lock")):  # several processes may start together
            if not cached.exists():
                log.info("building the CPU kernels once, in up to a minute, into %s", cached)
                build.build(cached)
    return cached


@functools.cache
def _attempt() -> ctypes.CDLL | str:
    """The loaded library, or why there is none."""
    try:
        library = ctypes.CDLL(str(find()))
    except (build.BuildError, OSError) as error:
        return str(error)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def obstacle() -> str | None:
    """Why the kernels cannot be used on this machine, or None when they can. Builds them if need be."""
    found = _attempt()
    return found if isinstance(found, str) else None


def load() -> ctypes.CDLL:
    """The library.

    Raises:
        DeviceError: it can neither be found nor built.
    """
    found = _attempt()
    if isinstance(found, str):
        raise DeviceError(
            f"The CPU kernels are not available: {found}.",
            hint="Install a C compiler such as gcc, or `pip install 'telechat[compiler]'`.",
        )
    return found
