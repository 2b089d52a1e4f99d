"""Cross-entropy of a large vocabulary without its logits: computed some rows of the head at a time.

The forward pass keeps two numbers per token, the largest logit and the sum of exponentials; the backward pass
computes the logits a second time. At 131,072 words that is faster than writing and reading all logits, and
takes a tenth of the memory. Products run in the autocast dtype where autocast is on, else in the dtype of the
hidden states; everything after them is fp32. Knows nothing of batches, models or ranks.

Shapes: N tokens, H hidden, V vocabulary (or this rank's share of it), C words of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from telechat.train.batch import IGNORED

# Logits held at a time, in elements. On a CPU a chunk should stay near its caches; an accelerator wants large
# products.
_CHUNK_ELEMENTS_CPU = 2**21
_CHUNK_ELEMENTS = 2**26
_LEAST_WIDTH = 256
# On a CPU, the number of learnt tokens is rounded up to multiples of this. Matrix libraries generate code for
# every new shape; without the rounding that took a fifth of the training time of a small model.
_TOKEN_STEP = 256

# For a head split by vocabulary over ranks: (largest logit [N], sum of exponentials over it [N], target's
# logit [N]) of this rank's words to those of all words. The target's is 0 on ranks that do not have it.
Merge = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def chunked_cross_entropy(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    *,
    weights_N: Tensor | None = None,
    z_loss: float = 0.0,
    first_word: int = 0,
    merge: Merge | None = None,
) -> Tensor:
    """Summed cross-entropy fp32 [], differentiable in hidden states and weight.

    Args:
        hidden_NH: final hidden states.
        weight_VH: the head.
        targets_N: int64 word to predict, or -100 for tokens that do not count.
        weights_N: fp32 factor on each token's loss.
        z_loss: factor on the squared log-sum-exp, added to each token's loss; holds logits near 0.
        first_word: number of the first word of `weight_VH`, where a rank holds part of the head.
        merge: joins what ranks found for their parts. The gradient of `hidden_NH` is then this rank's part of
            it, to be added up by the caller.
    """
    places = _learnt_places(targets_N)
    loss_N, lse_N = _token_losses(hidden_NH, weight_VH, targets_N, places, first_word, merge)
    if z_loss:
        loss_N = loss_N + z_loss * lse_N.square()
    if weights_N is not None:
        loss_N = loss_N * weights_N[places]
    return loss_N.sum()


def token_log_probabilities(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    *,
    first_word: int = 0,
    merge: Merge | None = None,
) -> Tensor:
    """Log-probability fp32 [N] of each target, 0 where it is -100; arguments as `chunked_cross_entropy`."""
    places = _learnt_places(targets_N)
    loss_N, _ = _token_losses(hidden_NH, weight_VH, targets_N, places, first_word, merge)
    zeros = torch.zeros(targets_N.shape, dtype=torch.float32, device=hidden_NH.device)
    return zeros.index_copy(0, places, -loss_N)


def _learnt_places(targets_N: Tensor) -> Tensor:
    """Indices int64 of tokens that count. Only these reach the head: most are prompt or padding."""
    return (targets_N != IGNORED).nonzero()[:, 0]


def _token_losses(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    places: Tensor,
    first_word: int,
    merge: Merge | None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and log-sum-exp, fp32, of the tokens at `places`."""
    count = len(places)
    padded = F.pad(places, (0, padded_tokens(count, on_cpu=hidden_NH.is_cpu) - count))
    losses: Tensor
    lse: Tensor
    losses, lse = _TokenLoss.apply(  # type: ignore[no-untyped-call]
        hidden_NH[padded], weight_VH, targets_N[padded] - first_word, merge
    )
    return losses[:count], lse[:count]


class _TokenLoss(torch.autograd.Function):
    """(cross-entropy [N], log-sum-exp [N]) in fp32 of hidden [N, H], head [V, H] and targets [N].

    Targets outside 0..V-1 are another rank's.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, merge: Merge | None
    ) -> tuple[Tensor, Tensor]:
        hidden = hidden_NH.to(_product_dtype(hidden_NH))
        largest = torch.full(targets_N.shape, float("-inf"), dtype=torch.float32, device=hidden.device)
        sums, target_logit = torch.zeros_like(largest), torch.zeros_like(largest)
        for chunk in _logit_chunks(hidden, weight_VH, targets_N):
            picked = chunk.logits.gather(1, chunk.target_columns[:, None])[:, 0]
            target_logit += torch.where(chunk.has_target, picked, 0.0)
            previous, largest = largest, torch.maximum(largest, chunk.logits.amax(1))
            sums *= torch.exp(previous - largest)
            sums += chunk.logits.sub_(largest[:, None]).exp_().sum(1)
        if merge is not None:
            largest, sums, target_logit = merge(largest, sums, target_logit)
        # Kept apart: exponentials of differences from the largest logit are exact where it counts, those from
        # the log-sum-exp carry its rounding.
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, largest, sums)
        ctx.dtype = hidden.dtype
        return largest - target_logit + sums.log(), largest + sums.log()

    @staticmethod
    def backward(
        ctx: Any, loss_gradient_N: Tensor, lse_gradient_N: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_NH, weight_VH, targets_N, largest, sums = ctx.saved_tensors
        hidden = hidden_NH.to(ctx.dtype)
        transposed = hidden.t().contiguous()  # multiplied a third faster on a CPU than chunks transposed
        hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        weight_gradient = torch.empty_like(weight_VH) if ctx.needs_input_grad[1] else None
        factors = ((loss_gradient_N + lse_gradient_N) / sums)[:, None]
        for chunk in _logit_chunks(hidden, weight_VH, targets_N):
            gradient = chunk.logits.sub_(largest[:, None]).exp_().mul_(factors)
            at_target = torch.where(chunk.has_target, -loss_gradient_N, 0.0)
            gradient.scatter_add_(1, chunk.target_columns[:, None], at_target[:, None])
            product = chunk.product.copy_(gradient)
            if hidden_gradient is not None:
                hidden_gradient += product @ chunk.weight
            if weight_gradient is not None:
                weight_gradient[chunk.start : chunk.start + len(chunk.weight)] = (transposed @ product).t()
        if hidden_gradient is not None:
            hidden_gradient = hidden_gradient.to(hidden_NH.dtype)
        return hidden_gradient, weight_gradient, None, None


@dataclass(frozen=True)
class _Chunk:
    """Logits of some words; its buffers are written over by the next chunk.

    Attributes:
        start: number of its first word.
        weight: these words' rows of the head [C, H] in the products' dtype.
        product: [N, C] in the products' dtype, scratch.
        logits: fp32 [N, C]; the same memory as `product` where that is fp32.
        has_target: bool [N], whether the token's target is among these words.
        target_columns: int64 [N] column of the target; some column where it is elsewhere.
    """

    start: int
    weight: Tensor
    product: Tensor
    logits: Tensor
    has_target: Tensor
    target_columns: Tensor


def _logit_chunks(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> Iterator[_Chunk]:
    """The logits chunk after chunk, from the first word to the last."""
    N, V = len(hidden_NH), len(weight_VH)
    width = chunk_width(N, V, on_cpu=hidden_NH.is_cpu)
    product_buffer = hidden_NH.new_empty(N * width)
    logit_buffer = product_buffer.float()  # itself where it is fp32
    for start in range(0, V, width):
        weight = weight_VH[start : start + width].to(hidden_NH.dtype)
        columns = len(weight)
        product = product_buffer[: N * columns].view(N, columns)
        logits = logit_buffer[: N * columns].view(N, columns)
        torch.mm(hidden_NH, weight.t(), out=product)
        if logits.dtype != product.dtype:
            logits.copy_(product)
        place = targets_N - start
        has_target = (place >= 0) & (place < columns)
        yield _Chunk(start, weight, product, logits, has_target, place.clamp(0, columns - 1))


def chunk_width(num_tokens: int, vocab_size: int, *, on_cpu: bool) -> int:
    """Words whose logits are held at a time."""
    elements = _CHUNK_ELEMENTS_CPU if on_cpu else _CHUNK_ELEMENTS
    return min(vocab_size, max(_LEAST_WIDTH, elements // max(1, num_tokens)))


def padded_tokens(num_tokens: int, *, on_cpu: bool) -> int:
    """Tokens that are computed for so many that count."""
    return num_tokens + (-num_tokens % _TOKEN_STEP if on_cpu else 0)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    """What products of these hidden states are computed in."""
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden.dtype
