"""`adapter_config.json` of PEFT: what of it an adapter needs, and what of it we refuse.

Knows no tensors. A setting that changes the result and that we do not compute is an error, never ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from telechat.errors import ConfigError

Number = TypeVar("Number", int, float)

# Fields that change no result once an adapter is trained, whatever their value.
_WITHOUT_EFFECT = frozenset({
    "alpha", "arrow_config", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
_READ = frozenset({
    "alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "peft_type", "r",
    "rank_pattern", "use_dora", "use_rslora",
})  # fmt: skip
# Other ways of starting take something away from the base model's weights.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Settings of a low-rank adapter, under PEFT's names.

    Attributes:
        r: rank.
        lora_alpha: the product of the two matrices is scaled by lora_alpha / r.
        target_modules: names of layers or ends of them (`query`), or one regular expression for whole names.
        use_rslora: scale by lora_alpha / sqrt(r) instead.
        use_dora: each output row has a magnitude of its own, see `Adapter`.
        rank_pattern, alpha_pattern: r and lora_alpha of layers whose name ends in a match.
        lora_dropout: while training only.
        base_model_name_or_path: what the adapter was trained on; a note for people.
    """

    r: int
    lora_alpha: float
    target_modules: tuple[str, ...] | str
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    lora_dropout: float = 0.0
    base_model_name_or_path: str = ""

    def __post_init__(self) -> None:
        for rank in (self.r, *self.rank_pattern.values()):
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise ConfigError(f"The adapter's rank r is {rank!r}; it must be a positive integer.")
        for alpha in (self.lora_alpha, *self.alpha_pattern.values()):
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
                raise ConfigError(f"The adapter's lora_alpha is {alpha!r}; it must be a number.")
        regexes = [*self.rank_pattern, *self.alpha_pattern]
        if isinstance(self.target_modules, str):
            regexes.append(self.target_modules)
        for text in regexes:
            try:
                re.compile(text)
            except re.error as error:
                raise ConfigError(f"The adapter's pattern {text!r} is not a regular expression.") from error

    def targets(self, module: str) -> bool:
        """Whether a layer of this name gets an adapter."""
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in self.target_modules)

    def rank(self, module: str) -> int:
        """Rank of a layer's matrices."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """Factor of a layer's product B A."""
        alpha, rank = _by_pattern(self.alpha_pattern, module, self.lora_alpha), self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    @classmethod
    def from_peft(cls, raw: Mapping[str, Any]) -> AdapterConfig:
        """From the contents of adapter_config.json.

        Raises:
            ConfigError: no LoRA, a wrong value, or a feature that we do not compute.
        """
        _refuse_unsupported(raw)
        targets = raw.get("target_modules")
        if isinstance(targets, list | tuple) and all(isinstance(name, str) for name in targets):
            targets = tuple(targets)
        elif not isinstance(targets, str):
            raise ConfigError(
                f"adapter_config.json has target_modules {targets!r}; it must be a list of names "
                "or a regular expression."
            )
        for name in ("r", "lora_alpha"):
            if name not in raw:
                raise ConfigError(f"adapter_config.json lacks {name}.")
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(raw.get(name) or {}, Mapping):
                raise ConfigError(f"adapter_config.json has {name} {raw[name]!r}; it must be an object.")
        dropout = raw.get("lora_dropout") or 0.0
        return cls(
            r=raw["r"],
            lora_alpha=raw["lora_alpha"],
            target_modules=targets,
            use_rslora=bool(raw.get("use_rslora")),
            use_dora=bool(raw.get("use_dora")),
            rank_pattern=dict(raw.get("rank_pattern") or {}),
            alpha_pattern=dict(raw.get("alpha_pattern") or {}),
            lora_dropout=float(dropout) if isinstance(dropout, int | float) else 0.0,
            base_model_name_or_path=str(raw.get("base_model_name_or_path") or ""),
        )

    def to_peft(self) -> dict[str, Any]:
        """Contents of adapter_config.json."""
        targets = self.target_modules
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model_name_or_path,
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": targets if isinstance(targets, str) else list(targets),
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "modules_to_save": None,
        }


def _by_pattern(patterns: Mapping[str, Number], module: str, default: Number) -> Number:
    """PEFT's rule: the first pattern that matches a name from some dot to its end."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise ConfigError(
            f"adapter_config.json has peft_type {kind!r}; only LORA adapters can be read.",
            hint="Merge the adapter into the model with the program that trained it.",
        )
    expected = {"bias": ("none", None), "fan_in_fan_out": (False, None), "init_lora_weights": _PLAIN_STARTS}
    refused = {name: raw[name] for name, plain in expected.items() if name in raw and raw[name] not in plain}
    # A field that we have never heard of may change the result, unless it is off.
    known = _READ | _WITHOUT_EFFECT
    refused |= {name: value for name, value in raw.items() if name not in known and value}
    for name, value in refused.items():
        raise ConfigError(
            f"adapter_config.json has {name} {value!r}, which is not supported.",
            hint="Merge the adapter into the model with the program that trained it.",
        )
