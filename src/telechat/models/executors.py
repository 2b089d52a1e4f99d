"""Which executor runs a model here, decided once, logged, and with the reason for what it is not."""

from __future__ import annotations

import logging

import torch

from telechat.device import CPU
from telechat.models.decoder import TeleChatModel
from telechat.models.fused import FusedExecutor, fused_obstacle
from telechat.models.native import NativeExecutor, native_obstacle
from telechat.models.paged import Executor, TorchExecutor
from telechat.ops.fused import choose_fused_kernels

log = logging.getLogger(__name__)


def choose_executor(
    model: TeleChatModel,
    *,
    deterministic: bool = False,
    kv_dtype: torch.dtype | None = None,
    consume: bool = False,
) -> Executor:
    """The device's kernels where they can run this model, else its torch modules.

    Args:
        model: in eval mode, on its device.
        deterministic: a row's result must not depend on the other rows of a step.
        kv_dtype: of the cache; by default the model's.
        consume: the model is not needed afterwards; its weights are given back as they are packed.
    """
    if model.device.type == CPU.type:
        executor = _on_cpu(model, deterministic=deterministic, kv_dtype=kv_dtype, consume=consume)
    else:
        executor = _on_accelerator(model, deterministic=deterministic, kv_dtype=kv_dtype)
    log.info("executor: %s", executor.describe())
    return executor


def _on_cpu(
    model: TeleChatModel, *, deterministic: bool, kv_dtype: torch.dtype | None, consume: bool
) -> Executor:
    obstacle = native_obstacle(model, kv_dtype=kv_dtype)
    if obstacle is None:
        return NativeExecutor(model, deterministic=deterministic, kv_dtype=kv_dtype, consume=consume)
    return TorchExecutor(model, kv_dtype=kv_dtype, deterministic=deterministic, why_torch=obstacle)


def _on_accelerator(model: TeleChatModel, *, deterministic: bool, kv_dtype: torch.dtype | None) -> Executor:
    if deterministic:
        # Which product multiplies depends on the number of rows there.
        obstacle: str | None = "a row's result shall not depend on the others"
    else:
        obstacle = fused_obstacle(model)
    if obstacle is None:
        kernels = choose_fused_kernels(model.device, model.dtype, model.config.hidden_size)
        if not isinstance(kernels, str):
            return FusedExecutor(model, kernels, kv_dtype=kv_dtype)
        obstacle = kernels
    return TorchExecutor(model, kv_dtype=kv_dtype, deterministic=deterministic, why_torch=obstacle)
