"""What an `LLM` is made of: weights, sampling defaults and end tokens from a folder, and a cache that fits.

Knows files' meanings and memory; nothing of requests.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from telechat.checkpoint import load_model, read_config
from telechat.checkpoint.folder import CONFIG, read_json
from telechat.checkpoint.loader import choose_dtype, stored_dtype
from telechat.checkpoint.packing_choice import read_packing
from telechat.checkpoint.parts import weight_folders
from telechat.checkpoint.weights import open_weights
from telechat.device import CPU, dtype_name, resolve_device
from telechat.engine.plan import CachePlan, cache_memory, default_block_size, plan_cache, workspace_bytes
from telechat.engine.sampling_params import SamplingParams
from telechat.engine.scheduler import MOST_PROMPT_ROWS
from telechat.errors import ConfigError, RequestError
from telechat.models import TeleChatModel, build_model, count_parameters
from telechat.models.executors import foresee_executor
from telechat.models.native import native_obstacle
from telechat.models.paged import Executor
from telechat.ops.paged import INT4
from telechat.parallel.executor import TensorParallelExecutor
from telechat.tokenizer import Tokenizer

log = logging.getLogger(__name__)

KvCacheDtype = Literal["auto", "int8", "int4"]
_KV_DTYPES: dict[KvCacheDtype, torch.dtype | None] = {"auto": None, "int8": torch.int8, "int4": INT4}

# Long prompts keep the others waiting for one step at most; larger steps would not be faster.
_BATCH_TOKENS_ON_CPU = 512
_BATCH_TOKENS_ELSEWHERE = 2048
# Below this, `dtype="auto"` computes in fp32 on the CPU: the weights are small enough that it costs little,
# and answers then do not depend on how a CPU rounds bf16.
_SMALL_MODEL_PARAMETERS = 500_000_000


def load_weights(folder: Path, *, device: str, dtype: str, **settings: Any) -> TeleChatModel:
    """`load_model`, but `auto` is the dtype of `auto_dtype`."""
    if dtype == "auto":
        dtype = dtype_name(auto_dtype(folder, resolve_device(device)))
    return load_model(folder, device=device, dtype=dtype, **settings)


def auto_dtype(folder: Path, device: torch.device) -> torch.dtype:
    """The dtype that an engine computes a folder's model in where none is asked for.

    As `choose_dtype`, but on a CPU small models are computed in fp32, and bf16 weights stay bf16 wherever our
    kernels multiply them, though the processor has no instructions for it: they take half the memory of fp32,
    and half the time to be read for every token.
    """
    if device == CPU and count_parameters(read_config(folder)) <= _SMALL_MODEL_PARAMETERS:
        return torch.float32
    stored_in = weight_folders(folder)[0]
    raw, weights = read_json(folder / CONFIG), open_weights(stored_in)
    is_plain_bf16 = stored_dtype(raw, weights) == torch.bfloat16 and read_packing(stored_in, raw) is None
    if device == CPU and is_plain_bf16 and _kernels_take(folder, torch.bfloat16):
        return torch.bfloat16
    return choose_dtype("auto", raw, weights, device)


def _kernels_take(folder: Path, dtype: torch.dtype) -> bool:
    model = build_model(read_config(folder), device="meta", target=CPU, dtype=dtype)
    return native_obstacle(model, device=CPU) is None


def expected_executor(folder: Path, *, device: str = "auto", deterministic: bool = False) -> str:
    """What an `LLM` of this folder would compute with here, and why not with something faster.

    Reads the configuration and the files' headers; no weights.

    Args:
        deterministic: as in `LLM`.

    Raises:
        CheckpointError, ConfigError, DeviceError: as loading.
    """
    place = resolve_device(device)
    dtype = auto_dtype(folder, place)
    model = build_model(read_config(folder), device="meta", target=place, dtype=dtype)
    return f"{foresee_executor(model, place, deterministic=deterministic)}, {dtype_name(dtype)}"


def check_positive(**settings: int | None) -> None:
    """Refuse numbers below 1; None stands for a default."""
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")


def check_rotary_length(executor: Executor, max_model_len: int) -> None:
    """Refuse a context that the model's one rotary table was not made for."""
    if executor.rope_mode == "static" and executor.static_length < max_model_len:
        raise ConfigError(
            f"max_model_len is {max_model_len}; the model's rotary table was made for "
            f"{executor.static_length} tokens.",
            hint="Build the model with static_length of at least max_model_len.",
        )


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of one step where nobody asked for another number."""
    return _BATCH_TOKENS_ON_CPU if device == CPU else _BATCH_TOKENS_ELSEWHERE


class Guesses(Protocol):
    """What guessing tokens costs (`proposers.Speculation`)."""

    @property
    def num_draft_tokens(self) -> int: ...
    def cache_bytes_per_block(self, block_size: int) -> int: ...


def plan_for(
    executor: Executor,
    guesses: Guesses | None = None,
    *,
    max_model_len: int,
    max_batch_size: int,
    max_batch_tokens: int,
    block_size: int | None,
    num_blocks: int | None,
    memory_limit: int | None,
    cache_bytes: int | None = None,
    reserved_bytes: int = 0,
) -> CachePlan:
    """The cache of an executor whose weights are in memory; None stands for the default.

    Args:
        guesses: how tokens are guessed, which takes memory too; None: not at all.
        reserved_bytes: to be left free, for adapters to come.

    Raises:
        ConfigError: it cannot hold max_model_len tokens.
    """

    def bytes_per_block(size: int) -> int:
        beside = 0 if guesses is None else guesses.cache_bytes_per_block(size)
        return executor.cache_bytes_per_block(size) + beside

    rows_per_request = 1 if guesses is None else 1 + guesses.num_draft_tokens
    available = None
    if num_blocks is None:
        workspace = workspace_bytes(
            executor.config,
            max_batch_tokens=max_batch_tokens,
            num_logit_rows=max_batch_size * rows_per_request + MOST_PROMPT_ROWS,
        )
        available = cache_memory(
            executor.device,
            memory_limit=memory_limit,
            workspace=workspace,
            held_by_ranks=executor.memory_of_others() if isinstance(executor, TensorParallelExecutor) else 0,
        )
    elif memory_limit is not None or cache_bytes is not None:
        other = "cache_memory" if memory_limit is None else "memory_limit"
        raise ConfigError(
            f"num_blocks and {other} both say how large the cache is.", hint="Give one of them."
        )
    plan = plan_cache(
        bytes_per_block,
        max_model_len=max_model_len,
        max_batch_size=max_batch_size,
        block_size=default_block_size(executor.device) if block_size is None else block_size,
        num_blocks=num_blocks,
        cache_bytes=cache_bytes,
        available_bytes=available,
        reserved_bytes=reserved_bytes,
    )
    if cache_bytes is not None and plan.num_bytes + plan.bytes_per_block <= cache_bytes:
        log.warning("the cache was to have %d bytes, but only %d are free", cache_bytes, plan.num_bytes)
    log.info("%s", plan.describe())
    return plan


def kv_dtype(name: KvCacheDtype) -> torch.dtype | None:
    """The dtype of a cache by its name; None is the model's.

    Raises:
        ConfigError: any other name.
    """
    if name not in _KV_DTYPES:
        raise ConfigError(f"kv_cache_dtype is {name!r}; it must be auto, int8 or int4.")
    return _KV_DTYPES[name]


def default_params(generation_config: Mapping[str, Any]) -> SamplingParams:
    """Sampling as the folder's authors set it; a value out of range is the file's fault, not a request's."""
    try:
        return SamplingParams.from_generation_config(generation_config)
    except RequestError as error:
        raise ConfigError(f"generation_config.json: {error.message}", hint=error.hint) from error


def eos_token_ids(
    tokenizer: Tokenizer, generation_config: Mapping[str, Any], *, vocab_size: int
) -> tuple[int, ...]:
    """The tokenizer's end token, and those of the generation config, which may be one or a list."""
    configured = generation_config.get("eos_token_id")
    ids = [] if configured is None else configured if isinstance(configured, list) else [configured]
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise ConfigError(
                f"generation_config.json has eos_token_id {configured!r}; "
                f"this model has ids 0 to {vocab_size - 1}."
            )
    return tuple(dict.fromkeys([tokenizer.special.eos, *ids]))
