"""FSDP over a stage: which of weights, gradients and optimiser state the ranks of data divide.

Stage 3 gathers a block's weights before each use. Stages 1 and 2 keep them gathered through a step; 2 divides
gradients after every micro batch, 1 once, at the step's end. Gradients are summed, not averaged: the loss is
divided by the number of tokens of all ranks beforehand. Knows nothing of models.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from telechat.device import CPU
from telechat.train.distributed.experts import SharedMixture
from telechat.train.distributed.groups import TrainGroups
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.distributed.stage import LayerElsewhere, Stage
from telechat.train.precision import Precision


def shard_stage(
    stage: Stage, layout: ParallelLayout, groups: TrainGroups, precision: Precision, device: torch.device
) -> None:
    """Divide a stage's parameters, block by block; experts among fewer ranks than the rest."""
    offload = (
        # Memory that is locked for transfers exists beside an accelerator only.
        CPUOffloadPolicy(pin_memory=device.type != CPU.type) if layout.offload else OffloadPolicy()
    )
    # Under autocast a block's products are computed in the lower format anyhow, so that is what travels.
    in_blocks = MixedPrecisionPolicy(
        param_dtype=precision.compute if precision.autocasts else None,
        reduce_dtype=precision.weights,
        cast_forward_inputs=False,
    )
    as_stored = MixedPrecisionPolicy(cast_forward_inputs=False)

    def shard(module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=layout.zero_stage == 3,
            mp_policy=policy,
            offload_policy=offload,
        )

    for block in stage.model.transformer.blocks:
        if isinstance(block, LayerElsewhere):
            continue
        if isinstance(block.mlp, SharedMixture):
            shard(block.mlp.local_experts, groups.expert_mesh, in_blocks)
            # It chooses in fp32, as in one process: rounded, it would send tokens to other experts.
            shard(block.mlp.router, groups.dense_mesh, as_stored)
        shard(block, groups.dense_mesh, in_blocks)
    shard(stage, groups.dense_mesh, as_stored)
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Without this, gloo is asked for a product that it does not know.
            module.set_force_sum_reduction_for_comms(True)


def prepare_backward(stage: Stage, layout: ParallelLayout, *, is_last: bool) -> None:
    """Say whether this is the last micro batch of a step: what can wait until then waits."""
    if not isinstance(stage, FSDPModule):
        return
    sharded = cast("FSDPModule", stage)
    sharded.set_is_last_backward(is_last)
    sharded.set_requires_gradient_sync(is_last or layout.zero_stage > 1)
    sharded.set_reshard_after_backward(is_last or layout.zero_stage == 3)


def release_weights(stage: Stage) -> None:
    """Drop what was gathered for a forward pass that no backward pass follows."""
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
