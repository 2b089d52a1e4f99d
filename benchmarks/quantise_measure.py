"""What formats lose on held-out rows: perplexity, and how far predictions move.

Models are loaded in fp32 and compute with exactly the weights that are stored, so only the format counts.
Perplexity looks at the tokens that are there, and changes by luck too where a model is nearly certain; the KL
divergence looks at whole predictions, and cannot be negative. Knows nothing of goals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from telechat.checkpoint import load_model
from telechat.data.sequences import Encoded
from telechat.evals.comparison import Predict
from telechat.models import TeleChatModel
from telechat.ops.quantized import WeightScheme, round_to_nearest
from telechat.quant.blocks import layers_of


@dataclass(frozen=True)
class Losses:
    """Sums over the marked tokens of each row.

    Attributes:
        nll: of -log p.
        kl: of KL(floats || format), in nats.
        num_tokens: how many they are.
    """

    nll: tuple[float, ...]
    kl: tuple[float, ...]
    num_tokens: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """Of all rows together."""
        return math.exp(sum(self.nll) / sum(self.num_tokens))

    @property
    def mean_kl(self) -> float:
        """Nats per token."""
        return sum(self.kl) / sum(self.num_tokens)

    def less(self, other: Losses) -> tuple[float, float]:
        """This -log p less the other's, per token, and one standard error of the difference."""
        return self._difference(self.nll, other.nll)

    def kl_less(self, other: Losses, share: float = 1.0) -> tuple[float, float]:
        """The same of this KL divergence and `share` times the other's."""
        return self._difference(self.kl, [share * kl for kl in other.kl])

    def _difference(self, ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
        total = sum(self.num_tokens)
        rows = [one - other for one, other in zip(ours, theirs, strict=True)]
        mean = sum(rows) / total
        spread = sum((row - mean * count) ** 2 for row, count in zip(rows, self.num_tokens, strict=True))
        return mean, math.sqrt(spread) / total

    def entry(self, plain: Losses) -> dict[str, Any]:
        """For the report; `lost` is how much higher the perplexity is, as a share."""
        lost, error = self.less(plain)
        return {
            "perplexity": self.perplexity,
            "lost": math.expm1(lost),
            "standard_error": math.exp(lost) * error,
            "mean_kl": self.mean_kl,
        }


def losses(predictors: Mapping[str, Predict], rows: Sequence[Encoded], plain: str) -> dict[str, Losses]:
    """Of all models on all rows; `plain` names the one in floats."""
    nll: dict[str, list[float]] = {name: [] for name in predictors}
    kl: dict[str, list[float]] = {name: [] for name in predictors}
    counts = []
    for row in rows:
        wanted, tokens = predictors[plain](row)
        share = wanted.exp()
        counts.append(len(tokens))
        for name, predict in predictors.items():
            found = wanted if name == plain else predict(row)[0]
            nll[name].append(-float(found.gather(1, tokens[:, None]).double().sum()))
            kl[name].append(float((share * (wanted - found)).double().sum()))
    return {name: Losses(tuple(nll[name]), tuple(kl[name]), tuple(counts)) for name in predictors}


def load(folder: Path) -> TeleChatModel:
    """A folder as stored, activations in fp32."""
    return load_model(folder, device="cpu", dtype="float32")


def rounded(folder: Path, bits: int, group_size: int) -> TeleChatModel:
    """The layers that GPTQ quantises, rounded to nearest instead; the head stays as it is."""
    model, scheme = load(folder), WeightScheme(bits, group_size)
    weights = {
        name: round_to_nearest(model.get_parameter(name), scheme).dequantise(torch.float32)
        for name in layers_of(model.config)
    }
    return with_weights(model, weights)


def with_weights(model: TeleChatModel, weights: dict[str, torch.Tensor]) -> TeleChatModel:
    """The model with other weights, by their names in the parameter table."""
    for name, weight in weights.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return model


def peer_weights(model: TeleChatModel, file: Path) -> dict[str, torch.Tensor]:
    """Weights under Llama's names as the parameter table names them, keys and values fused head by head."""
    stored, found = load_file(file), {}
    size = model.config.head_dim
    for name in layers_of(model.config):
        _, _, number, part, layer, _ = name.split(".")
        prefix = f"model.layers.{number}."
        if layer == "key_value":
            keys, values = (stored[f"{prefix}self_attn.{one}_proj.weight"].split(size) for one in "kv")
            found[name] = torch.cat([head for pair in zip(keys, values, strict=True) for head in pair])
        elif part == "mlp":
            found[name] = stored[f"{prefix}mlp.{layer}.weight"]
        else:
            found[name] = stored[f"{prefix}self_attn.{'q' if layer == 'query' else 'o'}_proj.weight"]
    return found
