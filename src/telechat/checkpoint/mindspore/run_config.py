"""MindFormers' run files (`predict_*.yaml`, `finetune_*.yaml`): the model they describe, as a config.json.

Reads what says how the model computes. What a run does with it is read by the verbs. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telechat.config import read_yaml
from telechat.errors import ConfigError
from telechat.run_file import RunFile, is_run_file

MODEL = "model.model_config"
# Field of config.json -> names in `model.model_config`.
_FIELDS = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size",),
    "n_layer": ("num_layers", "num_hidden_layers"),
    "n_head": ("num_heads", "n_head"),
    "num_key_value_heads": ("n_kv_heads", "num_kv_heads"),
    "ffn_hidden_size": ("intermediate_size",),
    "layer_norm_epsilon": ("rms_norm_eps",),
    "seq_length": ("seq_length",),
    "bos_token_id": ("bos_token_id",),
    "eos_token_id": ("eos_token_id",),
    "hidden_dropout": ("hidden_dropout_prob",),
    "attention_dropout": ("attention_dropout_prob",),
}
_REQUIRED = ("vocab_size", "hidden_size", "n_layer", "n_head", "ffn_hidden_size")
# What else is read there.
_OTHERS = (
    "pad_token_id",
    "max_position_embedding",
    "extend_method",
    "theta",
    "scaling_factor",
    "base_seqlen",
    "pretrain_seqlen",
    "training_seqlen",
    "rotary_dtype",
)
_EXPERT_PLACES = ("moe_config", f"{MODEL}.moe_config")
_EXPERTS = (
    "expert_num",
    "num_experts_chosen",
    "norm_topk_prob",
    "routed_scaling_factor",
    "shared_expert_num",
)
_DEFAULT_LENGTH = 8192


def is_model_config(raw: Mapping[str, Any]) -> bool:
    """Whether the contents of a config.json are MindFormers', as in a folder for MindIE."""
    return "num_layers" in raw and "n_layer" not in raw and "intermediate_size" in raw


def read_keys() -> list[str]:
    """The keys of a run file that are read here."""
    names = [*(name for names in _FIELDS.values() for name in names), *_OTHERS]
    experts = [f"{place}.{name}" for place in _EXPERT_PLACES for name in _EXPERTS]
    return [*(f"{MODEL}.{name}" for name in names), *experts]


def read_run_config(path: Path) -> dict[str, Any]:
    """The model of a MindFormers run file, as the contents of a config.json.

    Raises:
        ConfigError: no such file, not MindFormers', without a size that the model needs, or with a value of
            the wrong kind.
    """
    raw = read_yaml(path)
    if not is_run_file(raw):
        raise ConfigError(f"{path.name} has no model.model_config; it is no MindFormers run file.")
    return model_fields(raw, path.name)


def model_fields(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The model of a run file's contents, as the contents of a config.json.

    Raises:
        ConfigError: as `read_run_config`; says `source`.
    """
    file = RunFile(raw, source)
    fields: dict[str, Any] = {"model_type": "telechat"}
    for ours, names in _FIELDS.items():
        values = [file.get(f"{MODEL}.{name}") for name in names]
        value = next((value for value in values if value is not None), None)
        if value is not None:
            fields[ours] = value
    missing = [_FIELDS[name][0] for name in _REQUIRED if name not in fields]
    if missing:
        raise ConfigError(f"{source} lacks {', '.join(missing)} in model.model_config.")
    pad = file.number(f"{MODEL}.pad_token_id", -1)  # which stands for none
    if pad >= 0:
        fields["pad_token_id"] = pad
    fields |= _lengths(file)
    place = next((place for place in _EXPERT_PLACES if file.get(place)), _EXPERT_PLACES[0])
    if file.number(f"{place}.expert_num", 1) > 1:
        experts = {key: file.get(f"{place}.{key}") for key in _EXPERTS}
        fields["moe_config"] = {key: value for key, value in experts.items() if value is not None}
    return fields


def _lengths(file: RunFile) -> dict[str, Any]:
    """Rotary settings and the lengths they depend on."""

    def length(name: str) -> int:
        return file.number(f"{MODEL}.{name}", 0)

    trained = length("max_position_embedding") or length("seq_length") or _DEFAULT_LENGTH
    method = file.text(f"{MODEL}.extend_method") or "None"
    base_length, training_length = trained, trained
    rope: dict[str, Any] = {"base": file.number(f"{MODEL}.theta", 0.0) or 10000.0}
    if method.upper() == "NONE":
        rope["scheme"] = "none"
    elif method.upper() == "DYNAMIC_NTK":
        rope["scheme"] = "mindformers-dynamic"
        base_length = length("base_seqlen") or trained
    elif method.upper() == "NTK" and length("pretrain_seqlen"):
        # The tutorial's spelling of the official torch rule.
        base_length = length("pretrain_seqlen")
        training_length = length("training_seqlen") or trained
    elif method.upper() in ("NTK", "PI"):
        scheme = "pi" if method.upper() == "PI" else "ntk-static"
        rope |= {"scheme": scheme, "factor": file.number(f"{MODEL}.scaling_factor", 0.0) or 1.0}
    else:
        raise ConfigError(
            f"{file.source}: extend_method is {method!r}; known are None, NTK, DYNAMIC_NTK and PI."
        )
    if file.text(f"{MODEL}.rotary_dtype") == "float32":
        rope["table_dtype"] = "float32"
    return {"base_seqlen": base_length, "training_seqlen": training_length, "telechat_rope": rope}
