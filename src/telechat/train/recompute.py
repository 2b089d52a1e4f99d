"""Activation checkpointing: what a block keeps for its backward pass, and what it computes again.

Applied to blocks from outside, by their `forward`, so that parameter names stay as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Recompute = Literal["none", "selective", "full"]

_aten = torch.ops.aten
# Costly to compute again, and small beside what lies between them.
_KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)


def apply_recompute(blocks: Iterable[nn.Module], mode: Recompute, *, compiled: bool = False) -> None:
    """Give blocks a forward that keeps less: `full` their input, `selective` also their products.

    Args:
        compiled: the blocks will be compiled.
    """
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        # The compiler knows only torch's way, which wants every operation again that the forward pass had.
        # FSDP inside a block, of experts on their own ranks, does not gather the same way twice.
        options["context_fn"] = (
            partial(create_selective_checkpoint_contexts, _policy) if compiled else _selective_contexts
        )
    for block in blocks:
        forward = block.forward
        block.forward = partial(checkpoint, forward, **options)


def _selective_contexts() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """For the forward pass and for the second one."""
    kept: deque[Any] = deque()
    return _Keep(kept), _Reuse(kept)


class _Keep(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the outputs of products in their order."""

    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _KEPT:
            self.kept.append(tree_map_only(torch.Tensor, torch.Tensor.detach, out))
        return out


class _Reuse(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands these outputs out again, in place of computing them; each once."""

    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.kept.popleft() if func in _KEPT else func(*args, **(kwargs or {}))


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
