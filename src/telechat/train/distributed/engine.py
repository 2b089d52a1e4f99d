"""The training engine of one process among several: `TrainEngine` for any layout.

All ranks of a layout that work on the same micro batch (tensor, context and pipeline ranks) are given that
micro batch whole, and take their share. Knows nothing of data order, files or metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from telechat.device import CPU
from telechat.errors import CheckpointError, ConfigError, TelechatError
from telechat.models import TeleChatModel
from telechat.train.batch import Batch
from telechat.train.config import OptimizerSection, PrecisionName
from telechat.train.distributed.context import ContextShare, Share, changed, pad_rows, row_multiple
from telechat.train.distributed.division import Division
from telechat.train.distributed.groups import TrainGroups
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.distributed.pipeline import Pipeline
from telechat.train.distributed.sharded import prepare_backward, release_weights, shard_stage
from telechat.train.distributed.sources import WeightSource
from telechat.train.distributed.stage import LayerElsewhere, Stage, part_of, put_on_meta, shared_objective
from telechat.train.distributed.state import Piece, box, pieces_of_optimizer, whole_tensors
from telechat.train.engine import StepLoss
from telechat.train.objective import Objective
from telechat.train.optimizer import OptimizerSet
from telechat.train.precision import PRECISIONS, LossScale

c10d: Any = dist


class DistributedEngine:
    """This rank's part of the weights and of the optimiser; see `TrainEngine`.

    Args:
        model: the whole model; its parameters, which may be on `meta`, are left there.
        objective: what is minimised.
        optimizer: settings of the optimiser.
        precision: a name from `PRECISIONS`.
        layout: complete, see `ParallelLayout.for_world`; torch.distributed is initialised with its size.
        device: where this rank computes.
        source: gives the weights, whole tensors one at a time; see `telechat.train.distributed.sources`.
        prepare: called with this rank's blocks before they are divided, to compile them and the like.

    Raises:
        ConfigError: model, objective or optimiser do not go with the layout.
        CheckpointError: `source` lacks a tensor.
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
        source: WeightSource,
        prepare: Callable[[Sequence[nn.Module]], None] | None = None,
    ) -> None:
        self.layout = layout
        self.device = device
        self.objective = objective
        self.precision = PRECISIONS[precision]
        self.groups = TrainGroups(layout, model.config, device)
        place = self.groups.place
        assert layout.dp is not None
        self.data_rank, self.data_size = place.ep * layout.dp + place.dp, layout.ep * layout.dp
        put_on_meta(model)
        self._whole = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.division = Division(
            model.config, layout, {name: tuple(p.shape) for name, p in self._whole.items()}
        )
        self.cuts = self.division.held(self.groups.rank)
        check_optimizer(
            optimizer, self.division, [name for name, p in model.named_parameters() if p.requires_grad]
        )
        self.context = ContextShare(
            layout,
            place,
            self.groups.cp,
            model.transformer.blocks[0].self_attention.attention,
            self.precision.compute,
        )
        self.stages = self._make_stages(model, prepare)
        self._parameters = self._materialise()
        self._fill(source(set(self._parameters)))
        self._local = {
            name: nn.Parameter(_local(p), requires_grad=p.requires_grad)
            for name, p in self._parameters.items()
        }
        used = [(name, p) for name, p in self._local.items() if p.numel()]
        self.optimizers = OptimizerSet(used, optimizer)
        self.loss_scale = LossScale(enabled=precision == "fp16")
        hidden = torch.empty(1, 1, model.config.hidden_size, dtype=self.precision.weights, device="meta")
        self.pipeline = (
            Pipeline(self.stages, layout, self.groups.pp, hidden, device) if layout.pp > 1 else None
        )

    def backward(self, batches: Sequence[Batch]) -> StepLoss:
        """See `TrainEngine`."""
        for stage in self.stages:
            stage.train()
        for parameter in self._parameters.values():
            parameter.grad = None
        counts = [self.objective.count(batch) for batch in batches]
        total = self._over_ranks(sum(counts))
        if total <= 0:
            raise TelechatError("No batch of this step has anything to learn.")
        factor = self.loss_scale.scale / total
        shares = self._shares(batches, [count * factor for count in counts])
        if self.pipeline is not None:
            losses = self.pipeline.train(shares, factor)
        else:
            losses = self._train(shares, factor)
        self._collect_gradients()
        return self._step_loss(losses, counts, total)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> StepLoss:
        """See `TrainEngine`."""
        batches = list(batches)
        for stage in self.stages:
            stage.eval()
        counts = [self.objective.count(batch) for batch in batches]
        shares = self._shares(batches, [0.0] * len(batches))
        if self.pipeline is not None:
            losses = self.pipeline.evaluate(shares)
        else:
            losses = {place: self._forward(shares, place)[0] for place in range(len(shares))}
        for stage in self.stages:
            release_weights(stage)
        return self._step_loss(losses, counts, self._over_ranks(sum(counts)))

    def clip(self, max_norm: float) -> float:
        """See `TrainEngine`."""
        squares = torch.zeros((), dtype=torch.float64)
        gradients = []
        for name, parameter in self._local.items():
            if parameter.grad is not None:
                gradients.append(parameter.grad)
                norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
                squares += norm.square().cpu().double() / self.division.num_copies(self.cuts[name])
        norm = math.sqrt(self._over_world(squares.item())) / self.loss_scale.scale
        factor = 1.0 / self.loss_scale.scale
        if 0 < max_norm < norm:
            factor *= max_norm / norm
        if factor != 1.0 and gradients:
            torch._foreach_mul_(gradients, factor)
        return norm

    def step(self, rate_factor: float) -> None:
        """See `TrainEngine`."""
        self.optimizers.step(rate_factor)

    def learning_rate(self) -> float:
        """See `TrainEngine`."""
        return self.optimizers.learning_rate()

    def state(self) -> dict[str, Any]:
        """See `TrainEngine`; tensors are this rank's pieces."""
        trained = {
            name: Piece.of(parameter, self.cuts[name])
            for name, parameter in self._local.items()
            if parameter.requires_grad
        }
        return {"model": trained, "optimizer": pieces_of_optimizer(self.optimizers.state(), self.cuts)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to do: `state` returned the live tensors."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `TrainEngine`; whole on rank 0, on `meta` elsewhere."""
        local: dict[str, Tensor] = dict(self._local)
        yield from whole_tensors(self._whole, local, self.division)

    def _make_stages(
        self, model: TeleChatModel, prepare: Callable[[Sequence[nn.Module]], None] | None
    ) -> list[Stage]:
        """This process's stages; parameters on `meta`."""
        layout, groups = self.layout, self.groups
        last = len(self.division.stages) - 1
        stages = []
        for number in range(groups.place.pp, last + 1, layout.pp):
            objective = shared_objective(self.objective, self.division, groups) if number == last else None
            part = part_of(model, self.division, groups, number)
            if prepare is not None:
                prepare([block for block in part.transformer.blocks if not isinstance(block, LayerElsewhere)])
            stage = Stage(part, objective, self.context, self.precision, tp=layout.tp)
            stages.append(stage)
        return stages

    def _materialise(self) -> dict[str, nn.Parameter]:
        """Give parameters memory; returns them by official name, as FSDP keeps them between steps."""
        found: dict[str, nn.Parameter] = {}
        for stage in self.stages:
            names = stage.official_names()
            if self.division.divides_rows:
                shard_stage(stage, self.layout, self.groups, self.precision, self.device)
            stage._apply(self._given_memory)  # type: ignore[no-untyped-call]
            found |= {names[name]: parameter for name, parameter in stage.named_parameters()}
        return found

    def _given_memory(self, tensor: Tensor) -> Tensor:
        """A parameter from `meta`, or a buffer, where this rank keeps it between steps."""
        device = CPU if self.layout.offload else self.device
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    @torch.no_grad()
    def _fill(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        missing = set(self._parameters)
        for name, whole in weights:
            if name in missing:
                _local(self._parameters[name]).copy_(whole[box(self.cuts[name])])
                missing.remove(name)
        if missing:
            raise CheckpointError(f"The weights lack {len(missing)} tensors, such as {min(missing)}.")

    def _train(self, shares: list[Share], factor: float) -> dict[int, Tensor]:
        losses = {}
        for place in range(len(shares)):
            prepare_backward(self.stages[0], self.layout, is_last=place == len(shares) - 1)
            loss = self._forward(shares, place)
            (loss[0] * factor).backward()  # type: ignore[no-untyped-call]
            losses[place] = loss[0].detach()
        return losses

    def _forward(self, shares: list[Share], place: int) -> Tensor:
        stage = self.stages[0]
        stage.shares = shares
        loss: Tensor = stage(shares[place].batch.ids, torch.tensor([place]))
        return loss

    def _shares(self, batches: Sequence[Batch], balance_weights: list[float]) -> list[Share]:
        """This rank's part of micro batches; those of a pipeline are made of one shape."""
        multiple = row_multiple(self.layout)
        lengths = [batch.ids.shape[1] for batch in batches]
        rows = [batch.ids.shape[0] for batch in batches]
        batches = list(batches)
        if self.pipeline is not None:
            extra = -len(batches) % self.layout.pp
            empty = changed(batches[0], lambda tensor: tensor[:0])
            batches += [pad_rows(empty, 1, lengths[0])] * extra
            balance_weights = balance_weights + [0.0] * extra
            rows, lengths = [max(rows)] * len(batches), [max(lengths)] * len(batches)
        return [
            self.context.share(
                pad_rows(batch, num_rows, -(-length // multiple) * multiple),
                self.device,
                balance_weight=weight,
            )
            for batch, num_rows, length, weight in zip(batches, rows, lengths, balance_weights, strict=True)
        ]

    def _collect_gradients(self) -> None:
        """Give the optimiser's parameters their gradients, summed over the ranks that hold copies."""
        for name, parameter in self._parameters.items():
            if not parameter.requires_grad:
                continue
            local = self._local[name]
            local.grad = None if parameter.grad is None else _local(parameter.grad)
            if local.grad is None:
                local.grad = torch.zeros_like(local)
            cut, groups = self.cuts[name], self.groups
            if not local.grad.numel():
                continue
            if cut.copies != "none":
                c10d.all_reduce(local.grad, group=groups.tp if cut.copies == "tp" else groups.kv_copies)
            if len(self.division.processes(name)) > 1:
                c10d.all_reduce(local.grad, group=groups.ends)
            if not self.division.divides_rows:
                mesh = groups.expert_mesh if ".local_experts." in name else groups.dense_mesh
                if mesh.size() > 1:
                    c10d.all_reduce(local.grad, group=mesh.get_group())

    def _step_loss(self, losses: Mapping[int, Tensor], counts: list[float], total: float) -> StepLoss:
        """Sums over the ranks that worked on the same micro batches, and over all."""
        table = torch.zeros(self.data_size, len(counts), dtype=torch.float64)
        for place, count in enumerate(counts):
            # Tensor-parallel ranks compute the same loss; context ranks each a part of it.
            if place in losses:
                table[self.data_rank, place] += losses[place].double().item() / self.layout.tp
            for stage in self.stages:
                if place in stage.balances:
                    balance = stage.balances[place].double().item()
                    table[self.data_rank, place] += balance * count / self.layout.tp
        for stage in self.stages:
            stage.balances.clear()
        c10d.all_reduce(table)
        return StepLoss(table.sum().float(), total, table[self.data_rank].float())

    def _over_ranks(self, value: float) -> float:
        """The sum over the ranks that were given other batches."""
        return self._over_world(value) / self.layout.num_model_ranks

    def _over_world(self, value: float) -> float:
        number = torch.tensor([value], dtype=torch.float64)
        c10d.all_reduce(number)
        return float(number)


def check_optimizer(section: OptimizerSection, division: Division, trained: Iterable[str]) -> None:
    """Refuse an optimiser that needs what this layout divides.

    Raises:
        ConfigError: says what it needs.
    """
    if section.name == "muon":
        raise ConfigError(
            "optimizer.name muon needs whole matrices on one process; the layout divides them.",
            hint="Use optimizer.name adamw on several processes.",
        )
    if section.name != "adamw-8bit":
        return
    wanted = set(trained)
    for rank in range(division.layout.world_size):
        for name, cut in division.held(rank).items():
            copies = division.num_copies(cut)
            if name in wanted and len(cut.whole) > 1 and copies > 1:
                raise ConfigError(
                    f"optimizer.name adamw-8bit rounds by chance, so the copies of {name} on {copies} "
                    "processes would part.",
                    hint="Use optimizer.name adamw, or zero_stage 1 to 3 with dp, cp and pp alone.",
                )


def _local(tensor: Tensor) -> Tensor:
    """The memory of this rank's part of a tensor."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
