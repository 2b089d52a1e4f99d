"""Which executor runs a model here, decided once, logged, and with the reason for what it is not."""

from __future__ import annotations

import logging

import torch

from telechat.device import CPU
from telechat.models.decoder import TeleChatModel
from telechat.models.fused import FusedExecutor, fused_obstacle
from telechat.models.native import NativeExecutor, native_obstacle
from telechat.models.paged import Executor, TorchExecutor
from telechat.ops.fused import FusedKernels, choose_fused_kernels

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


def foresee_executor(model: TeleChatModel, device: torch.device, *, deterministic: bool = False) -> str:
    """What `choose_executor` would take on `device` for a model that is not there yet, in words.

    Args:
        model: its weights may be on `meta`.
        deterministic: as for `choose_executor`.
    """
    if device.type == CPU.type:
        obstacle = native_obstacle(model, device=device)
        kind = "CPU kernels"
    else:
        kernels = _accelerator_kernels(model, device, deterministic=deterministic)
        obstacle = kernels if isinstance(kernels, str) else None
        kind = "" if isinstance(kernels, str) else f"{kernels.name} kernels"
    return f"{kind} on {device}" if obstacle is None else f"torch modules on {device} ({obstacle})"


def _on_cpu(
    model: TeleChatModel, *, deterministic: bool, kv_dtype: torch.dtype | None, consume: bool
) -> Executor:
    obstacle = native_obstacle(model, kv_dtype=kv_dtype)
    if obstacle is None:
        return NativeExecutor(model, deterministic=deterministic, kv_dtype=kv_dtype, consume=consume)
    return TorchExecutor(model, kv_dtype=kv_dtype, deterministic=deterministic, why_torch=obstacle)


def _on_accelerator(model: TeleChatModel, *, deterministic: bool, kv_dtype: torch.dtype | None) -> Executor:
    kernels = _accelerator_kernels(model, model.device, deterministic=deterministic)
    if isinstance(kernels, str):
        return TorchExecutor(model, kv_dtype=kv_dtype, deterministic=deterministic, why_torch=kernels)
    return FusedExecutor(model, kernels, kv_dtype=kv_dtype)


def _accelerator_kernels(
    model: TeleChatModel, device: torch.device, *, deterministic: bool
) -> FusedKernels | str:
    """The fused kernels for this model, or why there are none."""
    if deterministic:
        # Which product multiplies depends on the number of rows there.
        return "a row's result shall not depend on the others"
    return fused_obstacle(model) or choose_fused_kernels(device, model.dtype, model.config.hidden_size)
