"""The stages of a pipeline, run by torch's schedules: 1F1B, or interleaved for several stages a process.

A step's micro batches all have one shape. Knows nothing of what stages compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

from telechat.train.distributed.context import Share
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.distributed.stage import Stage

c10d: Any = dist


class Pipeline:
    """This process's stages of one pipeline.

    Args:
        stages: in the order of the model.
        group: the processes of the pipeline.
        hidden: [1, 1, hidden] on `meta` in the format of what travels between stages.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        layout: ParallelLayout,
        group: Any,
        hidden: Tensor,
        device: torch.device,
    ) -> None:
        self.stages = list(stages)
        self.layout = layout
        self.group = group
        self.rank = dist.get_rank(group)
        self.num_stages = layout.pp * layout.pp_interleave
        self.hidden = hidden
        self.device = device
        self._schedule: Any = None
        self._shape: tuple[int, ...] = ()
        self._factor = 1.0

    def numbers(self) -> list[int]:
        """Which stages of the model this process holds, in the order of `stages`."""
        return list(range(self.rank, self.num_stages, self.layout.pp))

    def train(self, shares: Sequence[Share], factor: float) -> dict[int, Tensor]:
        """Forward and backward of a step's micro batches, their losses times `factor`.

        Returns:
            The loss of each micro batch by number, before the factor; empty but on the last process.
        """
        self._prepare(shares)
        self._factor = factor
        losses: list[Tensor] = []
        arguments: dict[str, Any] = {"number": torch.arange(len(shares))}
        if self.rank == self.layout.pp - 1:
            # The last stage has computed the loss itself; the schedule wants a target all the same.
            arguments |= {"target": torch.arange(len(shares)), "losses": losses}
        ids = [torch.cat([share.batch.ids for share in shares])] if self.rank == 0 else []
        self._schedule.step(*ids, return_outputs=False, **arguments)
        return {place: loss.detach() / factor for place, loss in enumerate(losses)}

    @torch.no_grad()
    def evaluate(self, shares: Sequence[Share]) -> dict[int, Tensor]:
        """The losses alone, one micro batch after the other; as `train`."""
        losses = {}
        for place, share in enumerate(shares):
            for number in range(self.num_stages):
                if number % self.layout.pp != self.rank:
                    continue
                stage = self.stages[number // self.layout.pp]
                stage.shares = list(shares)
                out = stage(self._arriving(share, number), torch.tensor([place]))
                if number == self.num_stages - 1:
                    losses[place] = out[0]
                else:
                    dist.send(out.contiguous(), self._peer(number + 1), self.group)
        return losses

    def _arriving(self, share: Share, number: int) -> Tensor:
        """What a stage computes on: ids, or what the stage before sends."""
        if number == 0:
            return share.batch.ids
        received = self._empty_hidden(share)
        dist.recv(received, self._peer(number - 1), self.group)
        return received

    def _peer(self, number: int) -> int:
        peer: int = c10d.get_global_rank(self.group, number % self.layout.pp)
        return peer

    def _empty_hidden(self, share: Share) -> Tensor:
        B, S = share.batch.ids.shape
        shape = (B, S // self.layout.tp, self.hidden.shape[-1])
        return torch.empty(shape, dtype=self.hidden.dtype, device=self.device)

    def _prepare(self, shares: Sequence[Share]) -> None:
        """A schedule for this number and shape of micro batches; torch's keep the buffers of the first."""
        for stage in self.stages:
            stage.shares = list(shares)
        shape = (len(shares), *shares[0].batch.ids.shape)
        if shape == self._shape:
            return
        assert len(shares) % self.layout.pp == 0, (len(shares), self.layout.pp)
        hidden = self._empty_hidden(shares[0])
        stages = [
            PipelineStage(
                stage,
                number,
                self.num_stages,
                self.device,
                input_args=shares[0].batch.ids if number == 0 else hidden.clone().requires_grad_(),
                output_args=torch.empty(1, device=self.device, requires_grad=True)
                if number == self.num_stages - 1
                else hidden.clone().requires_grad_(),
                group=self.group,
            )
            for stage, number in zip(self.stages, self.numbers(), strict=True)
        ]
        options = {"n_microbatches": len(shares), "loss_fn": self._loss, "scale_grads": False}
        if self.layout.pp_interleave == 1:
            self._schedule = Schedule1F1B(stages[0], **options)  # type: ignore[arg-type]
        else:
            self._schedule = ScheduleInterleaved1F1B(stages, **options)  # type: ignore[arg-type]
        self._shape = shape

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return output[0] * self._factor
