"""What a layer's inputs say about which errors of its weights matter.

The square error of a layer's outputs, summed over the calibration tokens, is trace(E H E^T) for an error E
of the weight and H = sum of x x^T. Knows nothing of codes.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from telechat.errors import ConfigError
from telechat.ops.cpu import library
from telechat.ops.cpu.context import choose_level, shared_context
from telechat.ops.cpu.matmul import matmul
from telechat.ops.cpu.weights import PackedWeight

log = logging.getLogger(__name__)

# Each refusal of the factorisation raises the damping by this much.
_RAISE_BY = 10.0
_MOST_DAMPING = 10.0
_TOKENS_AT_ONCE = 4096
# Below this a product is not worth preparing for.
_LEAST_INPUTS = 1024


class Hessian:
    """H = sum of x x^T over tokens, fp32, for all layers that read the same input.

    Attributes:
        num_tokens: tokens seen so far.
    """

    def __init__(self, num_inputs: int) -> None:
        self._matrix = torch.zeros(num_inputs, num_inputs)
        self._waiting: list[Tensor] = []  # until they are worth going through the matrix for
        self._num_waiting = 0
        self.num_tokens = 0

    def add(self, inputs: Tensor) -> None:
        """Take inputs [..., K] of any floating dtype in; they must not change afterwards.

        Raises:
            ConfigError: they, or earlier ones, hold numbers that are not finite.
        """
        x_TK = inputs.reshape(-1, inputs.shape[-1])
        self._waiting.append(x_TK)
        self._num_waiting += x_TK.shape[0]
        self.num_tokens += x_TK.shape[0]
        if self._num_waiting >= _TOKENS_AT_ONCE:
            self._take_in()

    @property
    def matrix(self) -> Tensor:
        """fp32 [K, K].

        Raises:
            ConfigError: as `add`.
        """
        if self._waiting:
            self._take_in()
        return self._matrix

    def _take_in(self) -> None:
        x_TK = torch.cat(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        self._waiting, self._num_waiting = [], 0
        for start in range(0, x_TK.shape[0], _TOKENS_AT_ONCE):
            _add_products(self._matrix, x_TK[start : start + _TOKENS_AT_ONCE])
        if not bool(self._matrix.diagonal().isfinite().all()):
            raise ConfigError("The calibration inputs of a layer are not finite.")

    def importance(self) -> Tensor:
        """fp32 [K]: what an error costs at each input; where nothing was ever seen, as if it were 1."""
        diagonal = self.matrix.diagonal().clone()
        return torch.where(diagonal == 0, 1.0, diagonal)

    @property
    def unused(self) -> Tensor:
        """bool [K]: inputs that were 0 at every token."""
        return self.matrix.diagonal() == 0


def _add_products(matrix_KK: Tensor, x_TK: Tensor) -> None:
    """matrix += x^T x, in fp32. bf16 inputs lose nothing by being multiplied as they are."""
    if x_TK.dtype == torch.bfloat16 and x_TK.shape[1] >= _LEAST_INPUTS and _multiplies_bf16():
        x_KT = x_TK.t().contiguous()
        context = shared_context()
        matmul(context, x_KT, PackedWeight.pack(context, x_KT, "bfloat16"), add_to=matrix_KK)
        return
    x = x_TK.float()
    matrix_KK.addmm_(x.t(), x)


@cache
def _multiplies_bf16() -> bool:
    """Whether the CPU kernels are there, and the processor multiplies bf16 many times as fast as fp32."""
    return library.obstacle() is None and choose_level() == "amx"


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
