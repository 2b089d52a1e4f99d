"""From what a user names to a model that can compute: its executor, tokenizer and generation config.

Knows names, folders and models already loaded; nothing of requests or of the cache's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telechat.checkpoint import read_generation_config, resolve_model
from telechat.checkpoint.hub import DEMO
from telechat.engine.loading import KvCacheDtype, kv_dtype
from telechat.engine.ranks import open_alone, open_ranks
from telechat.errors import ConfigError
from telechat.models import TeleChatModel
from telechat.models.executors import choose_executor
from telechat.models.paged import Executor
from telechat.parallel.sharding import Layout
from telechat.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class OpenModel:
    """A model ready to be given a cache.

    Attributes:
        name: as the user named it, without the path.
        model: None where several ranks hold it; its weights may have gone into the executor.
    """

    name: str
    tokenizer: Tokenizer
    generation_config: dict[str, Any]
    is_deterministic: bool
    executor: Executor
    model: TeleChatModel | None


def open_model(
    named: str | Path | TeleChatModel,
    tokenizer: Tokenizer | None,
    generation_config: Mapping[str, Any] | None,
    *,
    deterministic: bool | None,
    kv_cache_dtype: KvCacheDtype,
    layout: Layout,
    master_port: int,
    bind_cpu: bool,
    device: str,
    **loading: Any,
) -> OpenModel:
    """Open a model; arguments as in `LLM`, `loading` those of `load_weights`.

    Raises:
        CheckpointError, ConfigError, TokenizerError, DeviceError, RankError: it cannot be used so.
    """
    if isinstance(named, TeleChatModel):
        return _open_loaded(
            named,
            tokenizer,
            dict(generation_config or {}),
            layout=layout,
            is_deterministic=bool(deterministic),
            kv_cache_dtype=kv_cache_dtype,
            quantize=loading.get("quantize") or loading.get("group_size"),
        )
    folder = resolve_model(named)
    name = str(named) if not Path(named).is_dir() else Path(named).resolve().name
    tokenizer = tokenizer or load_tokenizer(folder)
    if generation_config is None:
        generation_config = read_generation_config(folder)
    is_deterministic = name == DEMO if deterministic is None else deterministic
    loading |= {"device": device, "deterministic": is_deterministic, "kv_cache_dtype": kv_cache_dtype}
    model: TeleChatModel | None = None
    executor: Executor
    if layout.world_size > 1:
        executor = open_ranks(folder, layout, port=master_port, bind_cpu=bind_cpu, **loading)
    else:
        model, executor = open_alone(folder, **loading)
    return OpenModel(name, tokenizer, dict(generation_config or {}), is_deterministic, executor, model)


def _open_loaded(
    model: TeleChatModel,
    tokenizer: Tokenizer | None,
    generation_config: dict[str, Any],
    *,
    layout: Layout,
    is_deterministic: bool,
    kv_cache_dtype: KvCacheDtype,
    quantize: object,
) -> OpenModel:
    """A model that the caller has loaded; its weights stay as they are, and the caller's."""
    if tokenizer is None:
        raise ConfigError("A model that is already loaded needs its tokenizer too.")
    if layout.world_size > 1:
        raise ConfigError(
            "A model that is already loaded cannot be spread over ranks.", hint="Give its folder."
        )
    if quantize is not None:
        raise ConfigError(
            "A model that is already loaded is not quantised here.",
            hint="Give quantize to telechat.load_model.",
        )
    executor = choose_executor(model, deterministic=is_deterministic, kv_dtype=kv_dtype(kv_cache_dtype))
    return OpenModel("telechat", tokenizer, generation_config, is_deterministic, executor, model)
