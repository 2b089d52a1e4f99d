"""What a run on preferences minimises: DPO, ORPO, SimPO or KTO over batches of answers.

Knows nothing of files, models or ranks. Shapes: B rows of a batch, S positions, R pairs or judged answers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from telechat.train.batch import IGNORED, Batch
from telechat.train.losses.cross_entropy import chunked_cross_entropy, token_log_probabilities
from telechat.train.losses.dpo import dpo_loss
from telechat.train.losses.kto import kto_baseline, kto_loss
from telechat.train.losses.orpo import orpo_loss
from telechat.train.losses.simpo import simpo_loss
from telechat.train.preference_settings import PreferenceSection


@dataclass(frozen=True, kw_only=True, eq=False)
class PreferenceBatch(Batch):
    """A micro batch whose two halves belong together, row by row.

    Above are chosen answers and below the rejected ones; for KTO, above are judged answers and below the same
    prompts with answers of others. Targets are the answers' tokens.

    Attributes:
        num_pairs: rows of each half that are not padding.
        reference: float32 [B] log-probability of each row's targets under the start weights; zeros where the
            loss has no reference.
        is_good: bool [B / 2] verdicts, for KTO only.
    """

    num_pairs: int
    reference: Tensor
    is_good: Tensor | None = None

    def to(self, device: torch.device) -> PreferenceBatch:
        """The same batch on another device."""
        moved = super().to(device)
        assert isinstance(moved, PreferenceBatch)
        return dataclasses.replace(
            moved,
            reference=self.reference.to(device, non_blocking=True),
            is_good=None if self.is_good is None else self.is_good.to(device, non_blocking=True),
        )


class PreferenceObjective:
    """One of the four losses, summed over pairs (KTO: judged answers), each weighing alike.

    The loss of a batch that is no `PreferenceBatch` is minus the log-probability of its targets: that is how
    references are measured, by the same engine.
    """

    def __init__(self, section: PreferenceSection) -> None:
        self.section = section

    def count(self, batch: Batch) -> float:
        """Pairs, or judged answers."""
        return batch.num_pairs if isinstance(batch, PreferenceBatch) else 1.0

    def loss(self, hidden_BSH: Tensor, head_VH: Tensor, batch: Batch) -> Tensor:
        """Summed loss []."""
        hidden_NH, targets_N = hidden_BSH.flatten(0, 1), batch.targets.flatten()
        if not isinstance(batch, PreferenceBatch):
            return chunked_cross_entropy(hidden_NH, head_VH, targets_N)
        tokens_BS = token_log_probabilities(hidden_NH, head_VH, targets_N).view(batch.targets.shape)
        return self._losses(tokens_BS.sum(1), batch).sum()

    def _losses(self, sums_B: Tensor, batch: PreferenceBatch) -> Tensor:
        """Losses [R] from the log-probabilities of the rows' targets."""
        section, R = self.section, batch.num_pairs

        def halves(values_B: Tensor) -> tuple[Tensor, Tensor]:
            upper, lower = values_B.chunk(2)
            return upper[:R], lower[:R]

        if section.loss in ("orpo", "simpo"):
            lengths_B = (batch.targets != IGNORED).sum(1).clamp(min=1)
            chosen, rejected = halves(sums_B / lengths_B)
            if section.loss == "orpo":
                return orpo_loss(chosen, rejected, beta=section.strength)
            return simpo_loss(chosen, rejected, beta=section.strength, gamma=section.margin)
        upper, lower = halves(sums_B)
        reference_upper, reference_lower = halves(batch.reference)
        if section.loss == "dpo":
            return dpo_loss(upper, lower, reference_upper, reference_lower, beta=section.strength)
        assert batch.is_good is not None
        desirable, undesirable = section.weights
        return kto_loss(
            upper,
            reference_upper,
            batch.is_good[:R],
            kto_baseline(lower, reference_lower),
            beta=section.strength,
            desirable_weight=desirable,
            undesirable_weight=undesirable,
        )
