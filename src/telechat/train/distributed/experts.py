"""A mixture whose experts are on several ranks: tokens travel to their experts and back, all to all.

Each rank sends as many rows as were routed to each other rank's experts, so nothing is padded. Without a
capacity nothing is dropped either; with one, assignments beyond it are not sent, and the capacity is that of
one rank's tokens. Knows nothing of layouts. Shapes: N tokens of this rank, E experts, k experts per token, n
ranks, e = E / n experts of each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from telechat.layers.moe import MixtureOfExperts, MoeConfig, Router, Routing
from telechat.train.distributed.collectives import exchange_counts, exchange_rows

c10d: Any = dist


class LocalExperts(nn.ModuleDict):
    """The experts of one rank, under their numbers in the whole mixture."""

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        """[rows, hidden] -> [rows, hidden]; the first `counts[0]` rows go to the first expert, and so on.

        Experts without a row run as well: all ranks that share their weights need a gradient of each.
        """
        parts: tuple[Tensor, ...] = rows.split(counts)  # type: ignore[no-untyped-call]
        return torch.cat([expert(part) for expert, part in zip(self.values(), parts, strict=True)])


class ContextRouter(Router):
    """A router whose tokens are one rank's part of the sequences.

    Its balancing loss is this rank's term of the loss over all of them: counts are those of all ranks, the
    probabilities its own.
    """

    def __init__(self, weight: nn.Parameter, config: MoeConfig, group: Any) -> None:
        super().__init__(1, config)
        self.weight = weight
        self.group = group

    def _over_ranks(self, counts: Tensor) -> Tensor:
        c10d.all_reduce(counts, group=self.group)
        return counts


class SharedMixture(MixtureOfExperts):
    """As `MixtureOfExperts`, with this rank's experts only.

    Args:
        whole: gives its router and the experts to keep.
        held: numbers of the experts of this rank.
        expert_group: the ranks that together hold all experts; None where this rank does.
        context_group: the ranks that share each sequence; None where none do.
    """

    def __init__(
        self, whole: MixtureOfExperts, held: range, *, expert_group: Any | None, context_group: Any | None
    ) -> None:
        nn.Module.__init__(self)
        router = whole.router
        if context_group is not None:
            router = ContextRouter(router.weight, router.config, context_group)
        self.router = router
        self.experts_of_rank = len(held)
        self.group = expert_group
        self.local_experts: Any = LocalExperts({str(number): whole.local_experts[number] for number in held})

    def forward(
        self, x: Tensor, routings: list[Routing] | None = None, is_real: Tensor | None = None
    ) -> Tensor:
        """[..., hidden] -> [..., hidden]; arguments as `MixtureOfExperts.forward`."""
        flat = x.reshape(-1, x.shape[-1])
        routing = self.router(flat, None if is_real is None else is_real.reshape(-1))
        if routings is not None:
            routings.append(routing)
        experts, weights = routing.experts.flatten(), routing.weights.to(x.dtype).flatten()
        places = experts.argsort(stable=True)  # of assignments, token after token
        if self.router.config.capacity_factor > 0:
            places = places[weights[places] != 0]
        tokens = places // routing.experts.shape[1]
        counts = torch.bincount(experts[places], minlength=self.router.config.num_experts)
        rows = self._through_experts(flat[tokens], counts) * weights[places, None]
        return torch.zeros_like(flat).index_add(0, tokens, rows.to(flat.dtype)).view_as(x)

    def _through_experts(self, rows: Tensor, counts_E: Tensor) -> Tensor:
        """Rows in the order of their experts, each through its own."""
        if self.group is None:
            through: Tensor = self.local_experts(rows, counts_E.tolist())
            return through
        sent_ne = counts_E.view(-1, self.experts_of_rank)
        received_ne = exchange_counts(sent_ne, self.group)
        sent, received = sent_ne.sum(1).tolist(), received_ne.sum(1).tolist()
        arrived = exchange_rows(rows, sent, received, self.group)
        # They come in the order of the senders, and of the experts within each.
        numbers = torch.arange(self.experts_of_rank, device=rows.device).repeat(len(sent))
        order = numbers.repeat_interleave(received_ne.flatten()).argsort(stable=True)
        out = self.local_experts(arrived[order], received_ne.sum(0).tolist())
        return exchange_rows(out[order.argsort()], received, sent, self.group)
