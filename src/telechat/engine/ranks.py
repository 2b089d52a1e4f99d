"""From a model folder to an executor: in this process alone, or spread over several ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from telechat.checkpoint import read_config
from telechat.checkpoint.parts import weights_folder
from telechat.device import CPU, device_count, resolve_device
from telechat.engine.loading import KvCacheDtype, kv_dtype, load_weights
from telechat.errors import DeviceError
from telechat.models import TeleChatModel
from telechat.models.executors import choose_executor
from telechat.models.paged import Executor
from telechat.parallel.executor import RankSettings, TensorParallelExecutor
from telechat.parallel.groups import Groups
from telechat.parallel.sharding import Layout, check_layout
from telechat.parallel.tensor import RankPart


def open_alone(
    folder: Path, *, deterministic: bool, kv_cache_dtype: KvCacheDtype, **loading: Any
) -> tuple[TeleChatModel, Executor]:
    """A model in this process, and its executor, which may have taken the weights.

    Args:
        deterministic, kv_cache_dtype: as in `LLM`.
        loading: arguments of `load_weights`.
    """
    model = load_weights(folder, **loading)
    executor = choose_executor(
        model, deterministic=deterministic, kv_dtype=kv_dtype(kv_cache_dtype), consume=True
    )
    return model, executor


def open_ranks(
    folder: Path, layout: Layout, *, port: int, bind_cpu: bool, device: str, **settings: Any
) -> TensorParallelExecutor:
    """The executor of a model over `layout.world_size` processes, this one included.

    Args:
        port, bind_cpu: as in `RankSettings`.
        device: `auto` or a type; each rank takes the device of its own number.
        settings: of `open_alone`, values that JSON can hold.

    Raises:
        DeviceError: fewer devices are visible than there are ranks, or one was named by number.
        RankError, ConfigError, CheckpointError: a rank could not start.
    """
    check_layout(read_config(folder), layout)
    weights_folder(folder, tp=layout.tp, ep=layout.ep)  # raises where it is split for other ranks
    place = resolve_device(device)
    if device != "auto" and torch.device(device).index is not None:
        raise DeviceError(
            f"Device {device!r} is one device; {layout.world_size} ranks need as many.",
            hint="Name the type only, and choose the devices with --devices.",
        )
    if place.type != CPU.type and device_count() < layout.world_size:
        raise DeviceError(
            f"{layout.world_size} ranks need as many devices; {device_count()} are visible.",
            hint="Lower --tp, or name more with --devices.",
        )
    return TensorParallelExecutor(
        RankSettings(
            layout=layout,
            build="telechat.engine.ranks:build_rank",
            settings={"folder": str(folder), "device_type": place.type, **settings},
            port=port,
            bind_cpu=bind_cpu,
        )
    )


def build_rank(settings: Mapping[str, Any], groups: Groups) -> Executor:
    """One rank's part of a model; every rank calls this with the same settings."""
    loading = dict(settings)
    folder, kind = Path(loading.pop("folder")), loading.pop("device_type")
    device = kind if kind == CPU.type else f"{kind}:{groups.rank}"
    return open_alone(folder, device=device, part=RankPart(groups), **loading)[1]
