"""MindFormers' run files (`predict_*.yaml`, `finetune_*.yaml`): the model they describe, as a config.json.

Reads what says how the model computes. What a run does with it is read by the verbs. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telechat.config import read_yaml
from telechat.errors import ConfigError
from telechat.run_file import is_run_file

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


def read_run_config(path: Path) -> dict[str, Any]:
    """The model of a MindFormers run file, as the contents of a config.json.

    Raises:
        ConfigError: no such file, not MindFormers', or without a size that the model needs.
    """
    raw = read_yaml(path)
    if not is_run_file(raw):
        raise ConfigError(f"{path.name} has no model.model_config; it is no MindFormers run file.")
    return model_fields(raw, path.name)


def model_fields(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The model of a run file's contents, as the contents of a config.json."""
    model = raw["model"]["model_config"]
    fields: dict[str, Any] = {"model_type": "telechat"}
    for ours, names in _FIELDS.items():
        value = next((model[name] for name in names if model.get(name) is not None), None)
        if value is not None:
            fields[ours] = value
    missing = [_FIELDS[name][0] for name in _REQUIRED if name not in fields]
    if missing:
        raise ConfigError(f"{source} lacks {', '.join(missing)} in model.model_config.")
    pad = model.get("pad_token_id")
    if isinstance(pad, int) and pad >= 0:
        fields["pad_token_id"] = pad
    fields |= _lengths(model, source)
    experts = raw.get("moe_config") or model.get("moe_config") or {}
    if isinstance(experts, Mapping) and experts.get("expert_num", 1) > 1:
        fields["moe_config"] = {key: experts[key] for key in _EXPERTS if experts.get(key) is not None}
    return fields


def _lengths(model: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Rotary settings and the lengths they depend on."""
    trained = int(model.get("max_position_embedding") or model.get("seq_length") or _DEFAULT_LENGTH)
    method = str(model.get("extend_method") or "None").upper()
    base_length, training_length = trained, trained
    rope: dict[str, Any] = {"base": float(model.get("theta") or 10000.0)}
    factor = float(model.get("scaling_factor") or 1.0)
    if method == "NONE":
        rope["scheme"] = "none"
    elif method == "DYNAMIC_NTK":
        rope["scheme"] = "mindformers-dynamic"
        base_length = int(model.get("base_seqlen") or trained)
    elif method == "NTK" and model.get("pretrain_seqlen"):
        # The tutorial's spelling of the official torch rule.
        base_length = int(model["pretrain_seqlen"])
        training_length = int(model.get("training_seqlen") or trained)
    elif method == "NTK":
        rope |= {"scheme": "ntk-static", "factor": factor}
    elif method == "PI":
        rope |= {"scheme": "pi", "factor": factor}
    else:
        raise ConfigError(
            f"{source}: extend_method is {model['extend_method']!r}; known are None, NTK, DYNAMIC_NTK and PI."
        )
    if str(model.get("rotary_dtype", "float16")) == "float32":
        rope["table_dtype"] = "float32"
    return {"base_seqlen": base_length, "training_seqlen": training_length, "telechat_rope": rope}
