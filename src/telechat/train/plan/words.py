"""Layouts as users write them, `dp8,tp2,zero3,offload`, and as plans show them."""

from __future__ import annotations

import re
from typing import Any

from telechat.errors import UsageError
from telechat.registry import nearest
from telechat.train.distributed.layout import AXES, ParallelLayout

_NUMBERED = {**{axis: axis for axis in AXES}, "zero": "zero_stage"}
_PLAIN: dict[str, dict[str, Any]] = {
    "offload": {"offload": True},
    "deepspeed": {"engine": "deepspeed"},
    "heads": {"context": "heads"},
    "ring": {"context": "ring"},
}


def parse_layout(text: str) -> ParallelLayout:
    """`dp8,tp2` as a layout; axes that are not named are 1. `zero0` to `zero3` (3 unless named), `offload`,
    `deepspeed`, `ring` and `heads` say the rest.

    Raises:
        UsageError: an unknown word (the nearest is named), or one twice.
        ConfigError: settings that exclude each other.
    """
    settings: dict[str, Any] = {"dp": 1}
    seen = set()
    for word in filter(None, re.split(r"[,\s]+", text.strip())):
        match = re.fullmatch(r"([a-z]+)=?(\d+)", word)
        name = match[1] if match else word
        if name in seen:
            raise UsageError(f"The layout {text!r} names {name} twice.")
        seen.add(name)
        if match and name in _NUMBERED:
            settings[_NUMBERED[name]] = int(match[2])
        elif not match and name in _PLAIN:
            settings.update(_PLAIN[name])
        else:
            known = [*(f"{axis}N" for axis in _NUMBERED), *_PLAIN]
            guess = nearest(name, [*_NUMBERED, *_PLAIN])
            hint = f"Did you mean {guess}?" if guess else f"Words are {', '.join(known)}."
            raise UsageError(f"The layout {text!r} has the unknown word {word!r}.", hint=hint)
    if settings.get("zero_stage", 3) > 3:
        raise UsageError(f"The layout {text!r} has zero{settings['zero_stage']}; stages are 0 to 3.")
    return ParallelLayout(**settings)


def describe_layout(layout: ParallelLayout) -> str:
    """A layout in the words that `parse_layout` reads."""
    axes = [f"{name}{size}" for name, size in layout.sizes.items() if size > 1] or ["dp1"]
    if (layout.dp is not None and layout.dp * layout.cp * layout.ep > 1) or layout.offload:
        axes.append(f"zero{layout.zero_stage}")
    if layout.offload:
        axes.append("offload")
    if layout.engine == "deepspeed":
        axes.append("deepspeed")
    if layout.context == "heads":
        axes.append("heads")
    return ",".join(axes)
