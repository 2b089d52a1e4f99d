"""What the loop asks of whoever holds the weights, and the engine that holds all of them in one process.

`telechat.train.distributed` has the engines for several processes. Knows nothing of data order, files or
metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from telechat.errors import TelechatError
from telechat.models import TeleChatModel
from telechat.train.batch import Batch
from telechat.train.config import OptimizerSection, PrecisionName
from telechat.train.forward import hidden_states
from telechat.train.objective import Objective
from telechat.train.optimizer import OptimizerSet
from telechat.train.precision import PRECISIONS, LossScale


@dataclass(frozen=True)
class StepLoss:
    """Loss of the batches of a step, over all ranks.

    Attributes:
        total: fp32 [] summed loss.
        count: what the sum is divided by: learnt tokens, or pairs.
        parts: fp32 [batches] summed loss of each batch of this rank, to find the one that went wrong.
    """

    total: Tensor
    count: float
    parts: Tensor

    @property
    def mean(self) -> Tensor:
        """fp32 [] loss per learnt token, or per pair."""
        return self.total / self.count


class TrainEngine(Protocol):
    """Holds weights and optimiser, on one process or as one of many; every rank calls every method alike.

    Attributes:
        device: where this rank computes.
        loss_scale: of fp16; the loop decides what an overflow means.
        data_rank, data_size: which share of a step's batches this rank is given, of how many. Ranks that
            split one batch among them (tensor, context, pipeline) have the same share.
    """

    device: torch.device
    loss_scale: LossScale
    data_rank: int
    data_size: int

    def backward(self, batches: Sequence[Batch]) -> StepLoss:
        """Replace the gradients by those of the mean loss over this step's batches of all ranks.

        Args:
            batches: this rank's share, on the host.
        """
        ...

    def evaluate(self, batches: Iterable[Batch]) -> StepLoss:
        """The loss alone, without dropout and without gradients, over the batches of all ranks.

        Args:
            batches: as many on every rank; some may have nothing to learn.
        """
        ...

    def clip(self, max_norm: float) -> float:
        """Scale the gradients down to a global norm (0 leaves them); returns the norm before."""
        ...

    def step(self, rate_factor: float) -> None:
        """Update the weights at a factor on the peak learning rates."""
        ...

    def learning_rate(self) -> float:
        """The rate of the last step, of the first parameter group."""
        ...

    def state(self) -> dict[str, Any]:
        """Trained weights and optimiser for torch.distributed.checkpoint: nested mappings of tensors.

        Names are official ones, whatever the layout, and the tensors are whole ones or DTensors, so that a
        run can be resumed on another layout. Loading fills them in place.
        """
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state that was loaded in place into what `state` returned; most hold it already."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole weights under official names, on the CPU, one at a time, in the order of the parameter table.

        Every rank has to iterate to the end.
        """
        ...


class LocalEngine:
    """All weights in this process.

    Args:
        model: trained in place; parameters that need no gradient stay as they are.
        objective: what is minimised.
        optimizer: settings of the optimiser.
        precision: a name from `PRECISIONS`; the model's weights are in that format already.
    """

    data_rank = 0
    data_size = 1

    def __init__(
        self,
        model: TeleChatModel,
        objective: Objective,
        optimizer: OptimizerSection,
        precision: PrecisionName,
    ) -> None:
        self.model = model
        self.objective = objective
        self.precision = PRECISIONS[precision]
        self.device = model.device
        self.optimizers = OptimizerSet(model.named_parameters(), optimizer)
        self.loss_scale = LossScale(enabled=precision == "fp16")

    def backward(self, batches: Sequence[Batch]) -> StepLoss:
        """See `TrainEngine`."""
        self.model.train()
        self.optimizers.zero_grad()
        count = self._count(batches)
        parts = []
        for batch in batches:
            # Dividing by the step's count, not the batch's, weighs every learnt token alike.
            loss = self._loss(batch)
            (loss * (self.loss_scale.scale / count)).backward()  # type: ignore[no-untyped-call]
            parts.append(loss.detach())
        for parameter in self.optimizers.parameters:
            if parameter.grad is None:  # an expert that no token came to: decayed all the same, on any layout
                parameter.grad = torch.zeros_like(parameter)
        return _step_loss(parts, count)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> StepLoss:
        """See `TrainEngine`."""
        self.model.eval()
        count, parts = 0.0, []
        for batch in batches:
            count += self.objective.count(batch)
            parts.append(self._loss(batch))
        return _step_loss(parts, count)

    def clip(self, max_norm: float) -> float:
        """See `TrainEngine`."""
        return scale_and_clip(self.optimizers.parameters, max_norm, self.loss_scale)

    def step(self, rate_factor: float) -> None:
        """See `TrainEngine`."""
        self.optimizers.step(rate_factor)

    def learning_rate(self) -> float:
        """See `TrainEngine`."""
        return self.optimizers.learning_rate()

    def state(self) -> dict[str, Any]:
        """See `TrainEngine`."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return {"model": trained, "optimizer": self.optimizers.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to do: `state` returned the live tensors."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `TrainEngine`."""
        for name, parameter in self.model.named_parameters():
            yield name, parameter.detach().cpu()

    def _count(self, batches: Sequence[Batch]) -> float:
        count = sum(self.objective.count(batch) for batch in batches)
        if count <= 0:
            raise TelechatError("No batch of this step has anything to learn.")
        return count

    def _loss(self, batch: Batch) -> Tensor:
        """Summed loss [] of a batch, the mixture's balancing loss included, weighed as the batch."""
        count = self.objective.count(batch)
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, self.precision.compute, enabled=self.precision.autocasts):
            hidden, balance = hidden_states(self.model, batch, dtype=self.precision.compute)
            loss = self.objective.loss(hidden, self.model.output_weight, batch)
        return loss if balance is None else loss + balance * count


def scale_and_clip(parameters: Sequence[nn.Parameter], max_norm: float, loss_scale: LossScale) -> float:
    """Take the loss scale out of the gradients and bring them down to `max_norm`, in one multiplication.

    Returns:
        The norm before clipping; inf or NaN after an overflow, when the gradients are of no use.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    # In fp32 whatever the gradients are in: bf16 keeps three digits of a sum of squares.
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    norm = float(torch.linalg.vector_norm(torch.stack(norms))) / loss_scale.scale
    factor = 1.0 / loss_scale.scale
    if 0 < max_norm < norm:
        factor *= max_norm / norm
    if factor != 1.0:
        torch._foreach_mul_(gradients, factor)
    return norm


def _step_loss(parts: list[Tensor], count: float) -> StepLoss:
    losses = torch.stack(parts).float()
    return StepLoss(losses.sum(), count, losses)
