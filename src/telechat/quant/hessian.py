"""What a layer's inputs say about which errors of its weights matter.

The square error of a layer's outputs, summed over the calibration tokens, is trace(E H E^T) for an error E
of the weight and H = sum of x x^T. Knows nothing of codes.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from telechat.errors import ConfigError

log = logging.getLogger(__name__)

# Each refusal of the factorisation raises the damping by this much.
_RAISE_BY = 10.0
_MOST_DAMPING = 10.0
_TOKENS_AT_ONCE = 4096


class Hessian:
    """H = sum of x x^T over tokens, fp32, for all layers that read the same input.

    Attributes:
        matrix: fp32 [K, K].
        num_tokens: tokens seen so far.
    """

    def __init__(self, num_inputs: int) -> None:
        self.matrix = torch.zeros(num_inputs, num_inputs)
        self.num_tokens = 0

    def add(self, inputs: Tensor) -> None:
        """Take inputs [..., K] of any floating dtype in.

        Raises:
            ConfigError: they hold numbers that are not finite.
        """
        x_TK = inputs.reshape(-1, inputs.shape[-1])
        for start in range(0, x_TK.shape[0], _TOKENS_AT_ONCE):
            x = x_TK[start : start + _TOKENS_AT_ONCE].float()
            self.matrix.addmm_(x.t(), x)
        self.num_tokens += x_TK.shape[0]
        if not bool(self.matrix.diagonal().isfinite().all()):
            raise ConfigError("The calibration inputs of a layer are not finite.")

    def importance(self) -> Tensor:
        """fp32 [K]: what an error costs at each input; where nothing was ever seen, as if it were 1."""
        diagonal = self.matrix.diagonal().clone()
        return torch.where(diagonal == 0, 1.0, diagonal)

    @property
    def unused(self) -> Tensor:
        """bool [K]: inputs that were 0 at every token."""
        return self.matrix.diagonal() == 0


def inverse_factor(hessian_KK: Tensor, damp: float) -> tuple[Tensor, float]:
    """The upper triangular U with U^T U = inverse of the damped H, and the damping that was needed.

    Args:
        hessian_KK: fp32, with a positive diagonal; left as it is.
        damp: share of the mean of the diagonal that is added to the diagonal.

    Raises:
        ConfigError: no damping helps.
    """
    K = hessian_KK.shape[0]
    mean = float(hessian_KK.diagonal().mean())
    asked = damp
    while damp <= _MOST_DAMPING:
        # H = V V^T with V upper triangular is a factorisation from the last row upwards; then U is V^-1.
        flipped = hessian_KK.flip(0, 1)
        flipped.diagonal().add_(damp * mean)
        lower, info = torch.linalg.cholesky_ex(flipped)
        if int(info) == 0:
            upper = lower.flip(0, 1)
            U = torch.linalg.solve_triangular(upper, torch.eye(K), upper=True)
            if bool(U.diagonal().isfinite().all()):
                if damp != asked:
                    log.warning("damping raised from %g to %g: the inputs are nearly dependent", asked, damp)
                return U, damp
        damp *= _RAISE_BY
    raise ConfigError(
        f"The inputs of a layer of {K} inputs are too dependent to invert, even with a damping of {damp:g}.",
        hint="Give more calibration rows, or a larger damp_percent.",
    )
