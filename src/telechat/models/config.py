"""The model configuration: one frozen value for every TeleChat generation, read from and written as
`config.json`.

Knows the official field names and their traps; knows nothing of weights or devices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from telechat.errors import ConfigError
from telechat.layers.moe import MoeConfig
from telechat.layers.rotary import RopeSettings

# Official class defaults where a key is absent from config.json.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 160256,
    "hidden_size": 4096,
    "n_layer": 30,
    "n_head": 32,
    "ffn_hidden_size": 12288,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "embed_layernorm": False,
    "apply_residual_connection_post_layernorm": False,
    "training_seqlen": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "unk_token_id": 0,
}
# Other spellings of a field, official or seen in the wild.
_ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("n_embed",),
    "n_layer": ("num_hidden_layers",),
    "n_head": ("num_attention_heads",),
}
_EXPERT_COUNT_KEYS = ("expert_num", "num_experts", "n_routed_experts", "num_local_experts")
_EXPERTS_PER_TOKEN_KEYS = ("num_experts_chosen", "num_experts_per_tok", "moe_top_k", "top_k")
# Compared in lower case: Telechat, TeleChat, Telechat2 and TeleChat2 are all in use.
_CLASS_NAMES = ("telechatforcausallm", "telechat2forcausallm", "telechat12bforcausallm")

# The T1-7B code has 4096 as a constant, the T1-12B code 8192; neither writes it to config.json. Only the 7B
# ties its embeddings, and it does so by leaving the key out, so tying tells them apart.
_BASE_LENGTH_TIED = 4096
_BASE_LENGTH_UNTIED = 8192


_POST_LAYERNORM = "apply_residual_connection_post_layernorm"
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
_COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "ffn_hidden_size",
    "seq_length",
)


@dataclass(frozen=True, kw_only=True)
class TeleChatConfig:
    """Shape and constants of a TeleChat decoder.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        num_layers, num_heads, num_kv_heads: decoder blocks; query heads; key/value heads.
        ffn_hidden_size: inner width of the feed-forward block (of one expert, in a mixture).
        norm_eps: epsilon of every RMSNorm.
        initializer_range: standard deviation of fresh weights.
        hidden_dropout, attention_dropout: probabilities, in training only.
        embed_layernorm: normalise embeddings before the first block.
        residual_post_layernorm: take the residual after the block's norm instead of before.
        tie_word_embeddings: the output head is the embedding matrix.
        seq_length: context length that the official tools assume, in tokens.
        rope: rotary settings; `rope.training_length` is the official `training_seqlen`.
        moe: mixture of experts, or None for a dense model.
        bos_token_id, eos_token_id, pad_token_id, unk_token_id: as in config.json (the 7B's are not those used
            in generation; see its generation_config.json).
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_hidden_size: int
    norm_eps: float = 1e-5
    initializer_range: float = 0.02
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    embed_layernorm: bool = False
    residual_post_layernorm: bool = False
    tie_word_embeddings: bool = False
    seq_length: int = 8192
    rope: RopeSettings = field(default_factory=RopeSettings)
    moe: MoeConfig | None = None
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 3
    unk_token_id: int = 0

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a positive integer.")
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of the number of heads {self.num_heads}."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head dimension {self.head_dim} is odd; rotary embedding needs an even one.")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly."
            )
        if not self.norm_eps > 0:
            raise ConfigError(f"layer_norm_epsilon is {self.norm_eps!r}; it must be positive.")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be in [0, 1).")
        if self.moe and not 1 <= self.moe.num_experts_per_token <= self.moe.num_experts:
            raise ConfigError(
                f"{self.moe.num_experts_per_token} experts a token cannot come from {self.moe.num_experts}."
            )

    @property
    def head_dim(self) -> int:
        """Dimension of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def training_seqlen(self) -> int:
        """Length the model was trained at, in tokens."""
        return self.rope.training_length

    def replace(self, **changes: Any) -> TeleChatConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> TeleChatConfig:
        """Read the contents of a `config.json`, official or written by `to_hf`.

        Raises:
            ConfigError: not a TeleChat model, or a value that cannot be.
        """
        _check_is_telechat(raw)

        def get(key: str) -> Any:
            for name in (*_ALIASES.get(key, ()), key):
                if raw.get(name) is not None:
                    return raw[name]
            return _DEFAULTS[key]

        num_heads = _integer("n_head", get("n_head"))
        tied = _boolean("tie_word_embeddings", get("tie_word_embeddings"))
        training_length = _integer("training_seqlen", get("training_seqlen"))
        base_length = _given(raw, "base_seqlen", _BASE_LENGTH_TIED if tied else _BASE_LENGTH_UNTIED)
        return cls(
            vocab_size=_integer("vocab_size", get("vocab_size")),
            hidden_size=_integer("hidden_size", get("hidden_size")),
            num_layers=_integer("n_layer", get("n_layer")),
            num_heads=num_heads,
            num_kv_heads=_integer("num_key_value_heads", raw.get("num_key_value_heads") or num_heads),
            ffn_hidden_size=_integer("ffn_hidden_size", get("ffn_hidden_size")),
            norm_eps=_number("layer_norm_epsilon", get("layer_norm_epsilon")),
            initializer_range=_number("initializer_range", get("initializer_range")),
            hidden_dropout=_number("hidden_dropout", get("hidden_dropout")),
            attention_dropout=_number("attention_dropout", get("attention_dropout")),
            embed_layernorm=_boolean("embed_layernorm", get("embed_layernorm")),
            residual_post_layernorm=_boolean(_POST_LAYERNORM, get(_POST_LAYERNORM)),
            tie_word_embeddings=tied,
            seq_length=_integer("seq_length", _given(raw, "seq_length", training_length)),
            rope=_read_rope(raw, _integer("base_seqlen", base_length), training_length),
            moe=_read_moe(raw),
            **{name: _integer(name, get(name)) for name in _TOKEN_IDS},
        )

    @staticmethod
    def expert_count(raw: Mapping[str, Any]) -> Any:
        """The number of experts in a config.json, under any of the names in use; None when there is none."""
        return _first({**raw, **_section("moe_config", raw)}, _EXPERT_COUNT_KEYS)

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` with official field names that the official code reads as well."""
        raw: dict[str, Any] = {
            "architectures": ["TeleChat2ForCausalLM"],
            "model_type": "telechat",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "n_layer": self.num_layers,
            "n_head": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "ffn_hidden_size": self.ffn_hidden_size,
            "layer_norm_epsilon": self.norm_eps,
            "initializer_range": self.initializer_range,
            "hidden_dropout": self.hidden_dropout,
            "attention_dropout": self.attention_dropout,
            "embed_layernorm": self.embed_layernorm,
            "apply_residual_connection_post_layernorm": self.residual_post_layernorm,
            "tie_word_embeddings": self.tie_word_embeddings,
            "training_seqlen": self.rope.training_length,
            "base_seqlen": self.rope.base_length,
            "seq_length": self.seq_length,
            "flash_attn": False,
            "use_cache": True,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "unk_token_id": self.unk_token_id,
        }
        rope = self.rope
        if rope != RopeSettings(base_length=rope.base_length, training_length=rope.training_length):
            raw["telechat_rope"] = {
                "base": rope.base,
                "scheme": rope.scheme,
                "factor": rope.factor,
                "table_dtype": rope.table_dtype,
            }
        if self.moe:
            raw["moe_config"] = {
                "expert_num": self.moe.num_experts,
                "num_experts_chosen": self.moe.num_experts_per_token,
                "norm_topk_prob": self.moe.norm_topk_prob,
                "routed_scaling_factor": self.moe.routed_scaling_factor,
                "aux_loss_factor": self.moe.aux_loss_factor,
                "capacity_factor": self.moe.capacity_factor,
                "shared_expert_num": 0,
                "router_dense_type": "float32",
            }
        return raw


def _check_is_telechat(raw: Mapping[str, Any]) -> None:
    """Accept every spelling of the class name in use; refuse other architectures by name."""
    named = raw.get("architectures") or []
    names = [str(name) for name in named] if isinstance(named, list | tuple) else [str(named)]
    if names and not any(name.lower() in _CLASS_NAMES for name in names):
        raise ConfigError(
            f"config.json describes {', '.join(names)}, which is not a TeleChat or TeleChat2 model.",
            hint="Point at a folder with a TeleChat checkpoint.",
        )
    if not names and raw.get("model_type") != "telechat":
        raise ConfigError(f"config.json has model_type {raw.get('model_type')!r}; expected 'telechat'.")


def _read_rope(raw: Mapping[str, Any], base_length: int, training_length: int) -> RopeSettings:
    extra = _section("telechat_rope", raw)
    base = _number("rope_theta", extra.pop("base", _given(raw, "rope_theta", 10000.0)))
    known = {"scheme", "factor", "table_dtype"}
    unknown = set(extra) - known
    if unknown:
        raise ConfigError(
            f"telechat_rope has unknown keys {sorted(unknown)}; known are {sorted(known | {'base'})}."
        )
    return RopeSettings(base=base, base_length=base_length, training_length=training_length, **extra)


def _read_moe(raw: Mapping[str, Any]) -> MoeConfig | None:
    """Expert settings, nested under `moe_config` or flat, under any of the names in use."""
    section = {**raw, **_section("moe_config", raw)}
    count = _first(section, _EXPERT_COUNT_KEYS)
    if count is None or _integer("expert_num", count) <= 1:
        return None
    if section.get("shared_expert_num"):
        raise ConfigError(
            f"shared_expert_num is {section['shared_expert_num']}; TeleChat models have no shared experts."
        )
    chosen = _first(section, _EXPERTS_PER_TOKEN_KEYS)
    if chosen is None:
        raise ConfigError(
            f"the config names {count} experts but not how many a token uses (num_experts_chosen)."
        )
    return MoeConfig(
        num_experts=_integer("expert_num", count),
        num_experts_per_token=_integer("num_experts_chosen", chosen),
        norm_topk_prob=_boolean("norm_topk_prob", section.get("norm_topk_prob", True)),
        routed_scaling_factor=_number("routed_scaling_factor", section.get("routed_scaling_factor", 1.0)),
        aux_loss_factor=_number("aux_loss_factor", section.get("aux_loss_factor", 0.01)),
        capacity_factor=_number("capacity_factor", section.get("capacity_factor", 0.0)),
    )


def _given(raw: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of a key; the default where it is absent or null. A zero is a value, and refused later."""
    return default if raw.get(key) is None else raw[key]


def _first(section: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((section[key] for key in keys if section.get(key) is not None), None)


def _section(name: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A nested object of the config; empty when absent."""
    section = raw.get(name) or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name} is {section!r}; it must be an object.")
    return dict(section)


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be true or false.")
    return value


def _integer(name: str, value: Any) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value != int(value):
        raise ConfigError(f"{name} is {value!r}; it must be an integer.")
    return int(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; it must be a number.")
    return float(value)
