"""Which executor runs a model here, decided once, logged, and with the reason for what it is not."""

from __future__ import annotations

import logging

import torch

from telechat.models.decoder import TeleChatModel
from telechat.models.native import NativeExecutor, native_obstacle
from telechat.models.paged import Executor, TorchExecutor

log = logging.getLogger(__name__)


def choose_executor(
    model: TeleChatModel,
    *,
    deterministic: bool = False,
    kv_dtype: torch.dtype | None = None,
    consume: bool = False,
) -> Executor:
    """The CPU kernels where they can run this model, else its torch modules.

    Args:
        model: in eval mode, on its device.
        deterministic: a row's result must not depend on the other rows of a step.
        kv_dtype: of the cache; by default the model's.
        consume: the model is not needed afterwards; its weights are given back as they are packed.
    """
    obstacle = native_obstacle(model, kv_dtype=kv_dtype)
    executor: Executor
    if obstacle is None:
        executor = NativeExecutor(model, deterministic=deterministic, kv_dtype=kv_dtype, consume=consume)
    else:
        executor = TorchExecutor(model, kv_dtype=kv_dtype, deterministic=deterministic, why_torch=obstacle)
    log.info("executor: %s", executor.describe())
    return executor
