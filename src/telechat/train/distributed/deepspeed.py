"""The training engine on DeepSpeed: ZeRO 0 to 3, with or without offload, for data-parallel processes.

For users whose clusters and configurations are DeepSpeed's; needs the extra `deepspeed`. The optimiser is
torch's AdamW, so nothing has to be compiled. Knows nothing of data order, files or metrics.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from telechat.device import CPU
from telechat.errors import ConfigError, MissingExtraError, TelechatError
from telechat.models import TeleChatModel
from telechat.train.batch import Batch
from telechat.train.config import OptimizerSection, PrecisionName
from telechat.train.distributed.groups import join
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.engine import StepLoss
from telechat.train.forward import hidden_states
from telechat.train.objective import Objective
from telechat.train.optimizer import OptimizerSet
from telechat.train.precision import (
    FIRST_SCALE_POWER,
    GROWTH_STEPS,
    HYSTERESIS,
    LEAST_SCALE,
    LossScale,
)

c10d: Any = dist
_MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine:
    """A `TrainEngine`. The loss scale of fp16 is DeepSpeed's own; `loss_scale` shows it.

    Args:
        model: whole, on the device; DeepSpeed divides it.
        layout: complete, with dp alone.

    Raises:
        ConfigError: an optimiser or a number format that this engine does not offer.
        MissingExtraError: DeepSpeed is not installed.
    """

    def __init__(
        self,
        model: TeleChatModel,
        objective: Objective,
        optimizer: OptimizerSection,
        precision: PrecisionName,
        *,
        layout: ParallelLayout,
        device: torch.device,
    ) -> None:
        if optimizer.name != "adamw" or precision == "bf16-pure":
            raise ConfigError(
                "parallel.engine deepspeed trains with optimizer.name adamw in fp32, bf16 or fp16; the "
                f"recipe has {optimizer.name} in {precision}.",
                hint="Change these, or use parallel.engine torch.",
            )
        self._library = _import_deepspeed(device)
        _check_precision(self._library, precision)
        join(device)
        self.device = device
        self.objective = objective
        self.loss_scale = LossScale(enabled=precision == "fp16")
        self.data_rank, self.data_size = dist.get_rank(), dist.get_world_size()
        self.max_grad_norm = optimizer.max_grad_norm
        self.num_steps = 0
        self._names = dict(model.named_parameters())
        optimizers = OptimizerSet(model.named_parameters(), optimizer)
        self._peaks = [group["lr"] for group in optimizers.optimizers[0].param_groups]
        self._stage = layout.zero_stage
        self._module = _Loss(model, objective, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision))
        if self._stage == 3:
            # Used outside the module that holds it, where DeepSpeed would not look for it.
            self._library.zero.register_external_parameter(self._module, model.output_weight)
        self._engine, *_ = self._library.initialize(
            model=self._module,
            optimizer=optimizers.optimizers[0],
            config=configuration(layout, precision, optimizer.max_grad_norm),
        )

        if self._stage:
            self._make_moments()

    def backward(self, batches: Sequence[Batch]) -> StepLoss:
        """See `TrainEngine`."""
        self._engine.train()
        counts = [self.objective.count(batch) for batch in batches]
        total = self._over_ranks(sum(counts))
        if total <= 0:
            raise TelechatError("No batch of this step has anything to learn.")
        parts = []
        for place, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            is_last = place == len(batches) - 1
            self._engine.set_gradient_accumulation_boundary(is_last)
            loss = self._engine(batch.to(self.device), count)
            # DeepSpeed takes the mean over ranks; the divisor is that of all ranks already.
            self._engine.backward(loss * (self.data_size / total))
            if not is_last:
                self._engine.step()
            parts.append(loss.detach())
        return self._step_loss(parts, total)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> StepLoss:
        """See `TrainEngine`."""
        self._engine.eval()
        total, parts = 0.0, []
        for batch in batches:
            count = self.objective.count(batch)
            total += count
            parts.append(self._engine(batch.to(self.device), count))
        return self._step_loss(parts, self._over_ranks(total))

    def clip(self, max_norm: float) -> float:
        """The norm; DeepSpeed clips to the recipe's limit itself, as it steps."""
        assert max_norm == self.max_grad_norm, (max_norm, self.max_grad_norm)
        squares = 0.0
        for parameter in self._trained().values():
            gradient = self._library.utils.safe_get_full_grad(parameter)
            if gradient is not None:
                squares += float(gradient.float().norm()) ** 2
        scale = float(getattr(self._engine.optimizer, "loss_scale", 1.0))
        norm = math.sqrt(squares) / scale
        if self.loss_scale.enabled:
            self.loss_scale.scale = scale
            if not math.isfinite(norm):
                self._engine.step()  # drops these gradients and lowers the scale
        return norm

    def step(self, rate_factor: float) -> None:
        """See `TrainEngine`."""
        for group, peak in zip(self._engine.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * rate_factor
        self._engine.step()
        self.num_steps += 1

    def learning_rate(self) -> float:
        """See `TrainEngine`."""
        return float(self._engine.optimizer.param_groups[0]["lr"])

    def state(self) -> dict[str, Any]:
        """See `TrainEngine`; whole tensors, which `load_state` gives back to DeepSpeed."""
        trained = self._trained()
        step = torch.tensor(float(self.num_steps))
        moments = {
            name: {"step": step.clone(), **{key: self._moment(p, key) for key in _MOMENTS}}
            for name, p in trained.items()
        }
        return {"model": {name: self._whole(p) for name, p in trained.items()}, "optimizer": moments}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `TrainEngine`."""
        utils = self._library.utils
        for name, parameter in self._trained().items():
            # What computes, beside what the optimiser holds.
            gathered = self._library.zero.GatheredParameters(
                [parameter], modifier_rank=0, enabled=self._stage == 3
            )
            with gathered:
                parameter.data.copy_(state["model"][name])
            self.num_steps = int(state["optimizer"][name]["step"])
            if self._stage == 0:
                self._engine.optimizer.state[parameter].update(state["optimizer"][name])
                continue
            utils.safe_set_full_fp32_param(parameter, state["model"][name])
            for key in _MOMENTS:
                utils.safe_set_full_optimizer_state(parameter, state["optimizer"][name][key], key)
        if self._stage:
            for flat in self._flat_partitions():
                self._engine.optimizer.optimizer.state[flat]["step"].fill_(self.num_steps)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `TrainEngine`."""
        for name, parameter in self._names.items():
            yield name, self._whole(parameter).cpu()

    def _make_moments(self) -> None:
        """Give every partition its moments now, as zeros.

        DeepSpeed looks for them once, after the first group of parameters has made its first step; those of
        the other groups, and of a run that is resumed, have to be there by then.
        """
        optimizer = self._engine.optimizer
        for flat in self._flat_partitions():
            known = optimizer.optimizer.state[flat]
            known.setdefault("step", torch.zeros((), dtype=torch.float32))
            for key in _MOMENTS:
                known.setdefault(key, torch.zeros_like(flat))
        if self._stage < 3:
            optimizer._lazy_init_hp_params_optimizer_state()

    def _flat_partitions(self) -> list[Tensor]:
        """What the optimiser steps on: this rank's part of each group of parameters, end to end."""
        optimizer = self._engine.optimizer
        flat = optimizer.fp32_partitioned_groups_flat if self._stage == 3 else None
        return list(flat if flat is not None else optimizer.single_partition_of_fp32_groups)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self._names.items() if parameter.requires_grad}

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        """The whole of a parameter, in fp32 where that is what the optimiser has."""
        if self._stage and parameter.requires_grad:
            whole: Tensor = self._library.utils.safe_get_full_fp32_param(parameter).detach().clone()
            return whole.view(getattr(parameter, "ds_shape", parameter.shape))
        with self._library.zero.GatheredParameters([parameter], enabled=self._stage == 3):
            return parameter.detach().clone()

    def _moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        if self._stage == 0:
            known = self._engine.optimizer.state[parameter]
            return known[key].clone() if key in known else torch.zeros_like(parameter)
        moment: Tensor = self._library.utils.safe_get_full_optimizer_state(parameter, key)
        return moment.detach().clone().view(getattr(parameter, "ds_shape", parameter.shape))

    def _over_ranks(self, value: float) -> float:
        number = torch.tensor([value], dtype=torch.float64)
        c10d.all_reduce(number)
        return float(number)

    def _step_loss(self, parts: list[Tensor], total: float) -> StepLoss:
        losses = torch.stack(parts).float().cpu()
        return StepLoss(torch.tensor(self._over_ranks(float(losses.double().sum()))), total, losses)


class _Loss(nn.Module):
    """A model with its loss: everything that uses weights, within one call."""

    def __init__(self, model: TeleChatModel, objective: Objective, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.dtype = dtype or torch.float32

    def forward(self, batch: Batch, count: float) -> Tensor:
        """Summed loss [] of a batch, the mixture's balancing loss included."""
        hidden, balance = hidden_states(self.model, batch, dtype=self.dtype)
        loss = self.objective.loss(hidden, self.model.output_weight, batch)
        return loss if balance is None else loss + balance * count


def configuration(layout: ParallelLayout, precision: PrecisionName, max_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's configuration of a layout, with the keys of `parallel.deepspeed` over ours."""
    offload = {"device": "cpu", "pin_memory": False}
    zero: dict[str, Any] = {"stage": layout.zero_stage}
    if layout.offload:
        zero["offload_optimizer"] = offload
        if layout.zero_stage == 3:
            zero["offload_param"] = offload
    ours: dict[str, Any] = {
        # How many rows and micro batches there are is the feed's affair.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {
            "enabled": precision == "fp16",
            "initial_scale_power": FIRST_SCALE_POWER,
            "loss_scale_window": GROWTH_STEPS,
            "hysteresis": HYSTERESIS,
            "min_loss_scale": LEAST_SCALE,
        },
    }
    return _merged(ours, layout.deepspeed)


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in theirs.items():
        known = merged.get(key)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            value = _merged(known, value)
        merged[key] = value
    return merged


def _import_deepspeed(device: torch.device) -> ModuleType:
    if device.type == CPU.type:
        os.environ.setdefault("DS_ACCELERATOR", CPU.type)
    try:
        import deepspeed
    except ImportError as error:
        raise MissingExtraError("deepspeed", "deepspeed") from error
    if device.type == CPU.type:
        # It would be compiled for collectives in shared memory, and fail where there is no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    library: ModuleType = deepspeed
    return library


def _check_precision(library: ModuleType, precision: str) -> None:
    """DeepSpeed asks the device itself, but names neither it nor what else would do.

    Raises:
        ConfigError: fp16 on a processor whose products oneDNN does not compute in it.
    """
    accelerator = library.accelerator.get_accelerator()
    if precision == "fp16" and not accelerator.is_fp16_supported():
        raise ConfigError(
            f"DeepSpeed does not train in fp16 on this device ({accelerator.device_name()}).",
            hint="Use precision bf16 or fp32, or parallel.engine torch.",
        )
