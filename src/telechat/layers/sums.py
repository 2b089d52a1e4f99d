"""Sums over ranks after a block, as a hook that says what it is.

Knows nothing of ranks: it is given the function that adds up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class OutputSum:
    """A forward hook that replaces what a module returns by `add_up` of it.

    An executor that does not run the module finds the hook and calls `add_up` itself.

    Attributes:
        add_up: a tensor's sum over ranks, of the same shape on all of them; may overwrite its argument.
    """

    add_up: Callable[[Tensor], Tensor]

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """As torch calls a forward hook."""
        return self.add_up(output)

    @classmethod
    def of(cls, module: nn.Module) -> OutputSum | None:
        """The one on a module, or None."""
        return next((hook for hook in module._forward_hooks.values() if isinstance(hook, cls)), None)
