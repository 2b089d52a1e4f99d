"""Options shared by the verbs that load a model and sample from it, and what they become.

The classes behind them are imported when a model is loaded, not when options are declared.
"""

from __future__ import annotations

import argparse
import logging
import os
from typing import TYPE_CHECKING, Any

from telechat.cli.model_source import DEFAULT_MODEL as DEFAULT_MODEL
from telechat.cli.model_source import MODEL_VARIABLE as MODEL_VARIABLE
from telechat.cli.model_source import add_source_options
from telechat.cli.model_source import chosen_model as chosen_model
from telechat.cli.parser import CommandParser, byte_size, positive_int
from telechat.cli.rank_options import add_rank_options, rank_settings, use_devices
from telechat.errors import RequestError, UsageError

if TYPE_CHECKING:
    from telechat.engine import LLM, SamplingParams

log = logging.getLogger(__name__)

# Options of `add_engine_options` as keywords of `LLM`, whose defaults stand where they are unset.
ENGINE_OPTIONS = (
    "quantize",
    "group_size",
    "block_size",
    "num_blocks",
    "memory_limit",
    "cache_memory",
    "kv_cache_dtype",
    "max_batch_tokens",
    "prefix_caching",
    "deterministic",
    "speculate",
    "num_draft_tokens",
)


def add_model_argument(parser: CommandParser) -> None:
    """Add the positional MODEL, which may be left out."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a folder, a checkpoint file, a hub id, or `demo` (default: $MODEL_PATH if set, else demo)",
    )


def add_loading_options(parser: CommandParser) -> None:
    """Add the options that say how a model is loaded."""
    group = parser.add_argument_group("loading")
    group.add_argument(
        "--device",
        default="auto",
        type=_device_name,
        help="a torch device name (default: auto, the best there is)",
    )
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision of the weights (default: auto)",
    )
    group.add_argument(
        "--attention",
        default="auto",
        choices=("auto", "flash", "sdpa", "reference"),
        help="attention implementation; one named runs or fails (default: auto)",
    )
    parser.add_boolean(
        "--trust-remote-code", help="accepted for old command lines; code in a model folder is never run"
    )
    group.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="round the weights to this many bits as they are read (default: leave them as they are)",
    )
    group.add_argument(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        help="with --quantize: inputs of a layer that share a scale (default: 32)",
    )
    group.add_argument(
        "--max-model-len",
        type=positive_int,
        metavar="TOKENS",
        help="longest prompt plus answer (default: the model's training length)",
    )
    add_engine_options(parser)
    add_rank_options(parser)
    add_source_options(parser)


def add_engine_options(parser: CommandParser) -> None:
    """Add the options of the engine: its cache and its steps."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--block-size",
        type=positive_int,
        metavar="TOKENS",
        help="tokens of a block of the cache: 16, 32, 64, 96 or 128 (default: by device)",
    )
    group.add_argument(
        "--num-blocks",
        type=positive_int,
        metavar="N",
        help="blocks of the cache (default: as many as are useful and fit)",
    )
    group.add_argument(
        "--memory-limit",
        type=byte_size,
        metavar="SIZE",
        help="most memory for weights, cache and work, such as 8GiB (default: a share of what is free)",
    )
    group.add_argument(
        "--cache-memory",
        type=byte_size,
        metavar="SIZE",
        help="memory of the cache alone, on accelerators of each device (default: what is useful and fits)",
    )
    group.add_argument(
        "--kv-cache-dtype",
        choices=("auto", "int8", "int4"),
        help="precision of the cache: int8 holds twice as much as bf16 and loses next to nothing, int4 holds "
        "three times as much and loses more (default: auto, the model's)",
    )
    group.add_argument(
        "--max-batch-tokens",
        "--max-num-batched-tokens",
        type=positive_int,
        metavar="N",
        help="tokens computed in one step; longer prompts are computed in pieces (default: by device)",
    )
    group.add_argument(
        "--prefix-caching",
        action=argparse.BooleanOptionalAction,
        help="share what was computed for equal beginnings of prompts (default: yes)",
    )
    group.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        help="same answer to the last bit whatever else is computed beside it (default: the demo model only)",
    )
    _add_speculation(group)


def _add_speculation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--speculate",
        metavar="prompt-lookup|MODEL",
        help="guess tokens from the text itself, or by a small model, and check several at a time; answers "
        "stay the same (default: do not guess)",
    )
    group.add_argument(
        "--num-draft-tokens",
        type=positive_int,
        metavar="N",
        help="with --speculate: most guesses for one answer in a step (default: 4)",
    )


def _device_name(text: str) -> str:
    """An argparse type: any name; whether it exists is found out later. `meta` holds no numbers."""
    if text.partition(":")[0] == "meta":
        raise argparse.ArgumentTypeError("meta is no device to compute on; choose auto, or cpu")
    return text


def add_sampling_options(parser: CommandParser) -> None:
    """Add the options that say how tokens are drawn; unset ones come from the model's folder."""
    group = parser.add_argument_group(
        "sampling", "unset options come from the model's generation_config.json"
    )
    group.add_argument(
        "--max-new-tokens",
        "--max-output-length",
        type=positive_int,
        metavar="N",
        help="longest answer, in tokens",
    )
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token each time")
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens; 0 from all")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest tokens that sum to P"
    )
    group.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 avoids repetition")
    group.add_argument("--seed", type=int, help="makes sampling repeatable")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the answer at TEXT; may be repeated"
    )


def load_llm(model: str, args: argparse.Namespace, **settings: Any) -> LLM:
    """Load the model named by the user with the options of `add_loading_options`."""
    from telechat.engine import LLM

    if args.trust_remote_code:
        log.info("--trust-remote-code has no effect: code in a model folder is never run")
    use_devices(args)
    return LLM(
        model,
        device=args.device,
        dtype=args.dtype,
        attention=args.attention,
        max_model_len=args.max_model_len,
        **{name: getattr(args, name) for name in ENGINE_OPTIONS if getattr(args, name) is not None},
        **rank_settings(args, os.environ),
        **settings,
    )


def sampling_params(llm: LLM, args: argparse.Namespace) -> SamplingParams:
    """The model's default sampling with the options of `add_sampling_options` on top."""
    import dataclasses

    chosen: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
        if getattr(args, name) is not None
    }
    if args.max_new_tokens is not None:
        chosen["max_tokens"] = args.max_new_tokens
    if args.stop:
        chosen["stop"] = tuple(args.stop)
    try:
        return dataclasses.replace(llm.default_params, **chosen)
    except RequestError as error:
        # Here the value was typed as a flag, and is one that the command does not take.
        raise UsageError(error.message, hint=error.hint) from error
