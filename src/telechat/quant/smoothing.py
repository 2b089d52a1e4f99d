"""Outliers moved from activations into weights: a norm's outputs are divided, its readers' inputs multiplied.

Nothing changes in exact arithmetic; with int8 on both sides less is lost. Methods differ in how much of each
input is moved. Shapes: N outputs, K inputs, T tokens. Knows nothing of blocks or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from telechat.errors import ConfigError
from telechat.ops.int8 import ActivationRange, quantise_rows

# As the official tool calls them.
ANTI_METHODS = ("m1", "m2", "m3", "m5", "m6")
_FLOOR = 1e-5
_STRENGTH = 0.5
_GRID = 20
_COARSE_GRID = 6
_SAMPLE_TOKENS = 256


def check_anti_method(name: str) -> None:
    """Refuse what does not exist, and what does not suit TeleChat.

    Raises:
        ConfigError: m4, or an unknown name.
    """
    if name == "m4":
        raise ConfigError("anti_method m4 does not support TeleChat.", hint="Choose m2.")
    if name and name not in ANTI_METHODS:
        raise ConfigError(f"anti_method is {name!r}; it must be one of {', '.join(ANTI_METHODS)}, or empty.")


def smoothing_scale(
    method: str, largest_x_K: Tensor, weights_NK: Sequence[Tensor], sample_TK: Tensor
) -> Tensor:
    """What each input is divided by, fp32 [K], all positive.

    Args:
        method: m1, m5: SmoothQuant, half of each input's excess. m2: inputs above a threshold are brought
            down to it. m3: a power of the inputs' magnitude, as in AWQ. m6: powers of both magnitudes. All
            but m1 and m5 search for what gives the least error at W8A8.
        largest_x_K: largest magnitude of each input.
        weights_NK: of all layers that read them.
        sample_TK: some of the inputs.
    """
    check_anti_method(method)
    largest_x = largest_x_K.clamp(min=_FLOOR)
    largest_w = torch.stack([w.float().abs().amax(0) for w in weights_NK]).amax(0).clamp(min=_FLOOR)
    sample = sample_TK[:_SAMPLE_TOKENS].float()
    candidates = list(_candidates(method, largest_x, largest_w))
    if len(candidates) == 1:
        return candidates[0]
    errors = [_error(scale, weights_NK, sample) for scale in candidates]
    return candidates[min(range(len(errors)), key=errors.__getitem__)]


def _candidates(method: str, largest_x: Tensor, largest_w: Tensor) -> Iterator[Tensor]:
    if method in ("m1", "m5"):
        yield (largest_x**_STRENGTH / largest_w ** (1 - _STRENGTH)).clamp(min=_FLOOR)
        return
    yield torch.ones_like(largest_x)
    if method == "m2":
        low, high = float(largest_x.median()), float(largest_x.max())
        for step in range(1, _GRID + 1):
            threshold = high * (max(low, _FLOOR) / high) ** (step / _GRID)
            yield (largest_x / threshold).clamp(min=1.0)
    elif method == "m3":
        for step in range(1, _GRID):
            yield _centred(largest_x ** (step / _GRID))
    else:
        powers = [step / (_COARSE_GRID - 1) for step in range(_COARSE_GRID)]
        for alpha in powers:
            for beta in powers:
                yield _centred(largest_x**alpha / largest_w**beta)


def _centred(scale: Tensor) -> Tensor:
    """Multiplied so that the extremes lie evenly around 1."""
    return (scale / (scale.max() * scale.min()).sqrt()).clamp(min=_FLOOR)


def _error(scale_K: Tensor, weights_NK: Sequence[Tensor], sample_TK: Tensor) -> float:
    """Square error of all outputs when inputs and weights are rounded to int8 after the move."""
    x = sample_TK / scale_K
    inputs = ActivationRange.spanning(float(x.min()), float(x.max()))
    rounded_x = (inputs.quantise(x).float() - inputs.offset) * inputs.scale
    total = 0.0
    for weight in weights_NK:
        plain = weight.float()
        integers, scales = quantise_rows(plain * scale_K)
        total += float(
            (rounded_x @ (integers.float() * scales[:, None]).t() - sample_TK @ plain.t()).square().sum()
        )
    return total
