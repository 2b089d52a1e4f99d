"""NEFTune (Jain et al. 2023): noise on token embeddings in training.

Attached to the embedding from outside; it changes no weight. Knows nothing of batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from telechat.models import TeleChatModel


@dataclass(frozen=True)
class EmbeddingNoise:
    """A forward hook that adds uniform noise in +-alpha / sqrt(S * hidden) to embeddings [B, S, hidden]."""

    alpha: float

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """As torch calls a forward hook; changes nothing in evaluation."""
        if not module.training:
            return output
        bound = self.alpha / math.sqrt(output.shape[1] * output.shape[2])
        return output + torch.empty_like(output).uniform_(-bound, bound)


def add_noise(model: TeleChatModel, alpha: float) -> None:
    """Add noise to a model's embeddings whenever it trains; 0 adds none."""
    if alpha:
        model.transformer.word_embeddings.register_forward_hook(EmbeddingNoise(alpha))
