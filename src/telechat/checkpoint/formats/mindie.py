"""The folder that MindIE's service expects: weights for MindFormers, its two configs, and the service's own.

Weights are kv_concat or qkv_concat, a file for each rank; experts are in the form for grouped products.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from telechat.checkpoint.folder import CONFIG
from telechat.checkpoint.formats.hf import companions, json_bytes
from telechat.checkpoint.formats.llama import rope_theta
from telechat.checkpoint.formats.mindspore import plan_mindspore
from telechat.checkpoint.formats.table import Checkpoint
from telechat.checkpoint.formats.writing import TargetPlan
from telechat.checkpoint.mindspore.layouts import ParallelLayout
from telechat.checkpoint.mindspore.naming import Layout
from telechat.device import dtype_name
from telechat.errors import CheckpointError
from telechat.models import TeleChatConfig

RUN_CONFIG = "predict_telechat.yaml"
SERVICE_CONFIG = "conf/config.json"
_BLOCK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class MindieSettings:
    """How the service runs the model.

    Attributes:
        tp: devices.
        qkv_concat: queries, keys and values in one tensor.
        max_seq_len: prompt and answer together, in tokens; by default the trained length.
        port: of the service.
        name: of the model.
        target: where the folder will be; the configs name it.
    """

    tp: int = 1
    qkv_concat: bool = False
    max_seq_len: int | None = None
    port: int = 1025
    name: str = "telechat"
    target: Path = Path()


def plan_mindie(
    checkpoint: Checkpoint, settings: MindieSettings, *, dtype: torch.dtype | None = None
) -> TargetPlan:
    """The plan of the folder.

    Raises:
        CheckpointError: MindFormers has no such model, or it cannot be shared by so many devices.
    """
    form = Layout(qkv_concat=settings.qkv_concat, gmm=checkpoint.config.moe is not None)
    layout = ParallelLayout(mp=settings.tp)
    weights = plan_mindspore(checkpoint, Path("weights"), form=form, layout=layout, dtype=dtype)
    length = settings.max_seq_len or checkpoint.config.training_seqlen
    compute = dtype_name(dtype or checkpoint.dtype)
    model = model_fields(checkpoint.config, settings, length, compute)
    small = {
        **companions(checkpoint),
        CONFIG: json_bytes(dict(sorted(model.items()))),
        RUN_CONFIG: run_config(model, settings),
        SERVICE_CONFIG: json_bytes(service_config(settings, length)),
    }
    # MindIE reads config.json as MindFormers'; ours would be mistaken for it.
    strategy = {name: content for name, content in weights.small.items() if name.startswith("strategy/")}
    return TargetPlan(files=weights.files, small={**small, **strategy})


def model_fields(
    config: TeleChatConfig, settings: MindieSettings, length: int, compute: str
) -> dict[str, Any]:
    """What MindFormers' model config says."""
    fields: dict[str, Any] = {
        "model_type": "telechat",
        "type": "TelechatConfig",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "intermediate_size": config.ffn_hidden_size,
        "seq_length": length,
        "max_position_embedding": config.training_seqlen,
        "rms_norm_eps": config.norm_eps,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        **rotary_fields(config, length),
        "compute_dtype": compute,
        "param_init_type": compute,
        "res_dtype": compute,
        "rotary_dtype": compute,
        "layernorm_compute_type": "float32",
        "softmax_compute_type": "float32",
        "out_proj_has_bias": True,
        "qkv_has_bias": False,
        "qkv_concat": settings.qkv_concat,
        "use_past": True,
        "is_dynamic": True,
        "use_flash_attention": True,
        "block_size": _BLOCK_SIZE,
        "num_blocks": max(512, -(-length // _BLOCK_SIZE)),
        "max_decode_length": 512,
        "do_sample": False,
        "top_k": 3,
        "top_p": 1,
        "repetition_penalty": 1,
    }
    if config.moe:
        fields["moe_config"] = {
            "expert_num": config.moe.num_experts,
            "num_experts_chosen": config.moe.num_experts_per_token,
            "norm_topk_prob": config.moe.norm_topk_prob,
            "routed_scaling_factor": config.moe.routed_scaling_factor,
            "shared_expert_num": 0,
        }
    return fields


def rotary_fields(config: TeleChatConfig, length: int) -> dict[str, Any]:
    """The rotary settings that give the model's own angles in texts of up to `length` tokens.

    Raises:
        CheckpointError: MindFormers has no rule that does.
    """
    rope = config.rope
    begins_early = rope.base_length != rope.training_length
    method = {"pi": "PI", "ntk-static": "NTK"}.get(rope.scheme)
    if method is not None:
        return {"theta": rope.base, "extend_method": method, "scaling_factor": rope.factor}
    if rope.scheme == "none":
        return {"theta": rope.base, "extend_method": "None"}
    if rope.scheme == "mindformers-dynamic" and begins_early:
        return {"theta": rope.base, "extend_method": "DYNAMIC_NTK", "base_seqlen": rope.base_length}
    if length <= rope.training_length:
        return {"theta": rope_theta(config, length), "extend_method": "None"}
    if begins_early:
        raise CheckpointError(
            f"This model's rotary base is stretched from {rope.base_length} tokens on, and it was trained on "
            f"{rope.training_length}; MindFormers cannot compute {length}.",
            hint=f"Set --max-seq-len to at most {rope.training_length}.",
        )
    return {"theta": rope.base, "extend_method": "DYNAMIC_NTK"}


def run_config(model: dict[str, Any], settings: MindieSettings) -> bytes:
    """MindFormers' `predict_*.yaml`."""
    import yaml

    section = {key: value for key, value in model.items() if key not in ("model_type", "moe_config")}
    raw: dict[str, Any] = {
        "seed": 0,
        "run_mode": "predict",
        "load_checkpoint": str(settings.target),
        "auto_trans_ckpt": False,
        "use_parallel": settings.tp > 1,
        "model": {"model_config": section, "arch": {"type": "ParallelTelechatForCausalLM"}},
        "processor": {
            "tokenizer": {
                "type": "TelechatTokenizer",
                "vocab_file": str(settings.target / "tokenizer.model"),
                "bos_token": "<_start>",
                "eos_token": "<_end>",
                "pad_token": "<_pad>",
            }
        },
        "parallel": {"parallel_mode": "STAND_ALONE", "full_batch": False},
        "parallel_config": {"data_parallel": 1, "model_parallel": settings.tp, "pipeline_stage": 1},
    }
    if "moe_config" in model:
        raw["moe_config"] = model["moe_config"]
    text: str = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    return text.encode()


def service_config(settings: MindieSettings, length: int) -> dict[str, Any]:
    """The service's `conf/config.json`."""
    longest_prompt = max(1, length * 3 // 4)
    model = {
        "modelInstanceType": "Standard",
        "modelName": settings.name,
        "modelWeightPath": str(settings.target),
        "worldSize": settings.tp,
        "cpuMemSize": 5,
        "npuMemSize": 8,
        "backendType": "ms",
        "trustRemoteCode": False,
    }
    return {
        "Version": "1.0.0",
        "LogConfig": {"logLevel": "Info", "logPath": "logs/mindservice.log"},
        "ServerConfig": {
            "ipAddress": "127.0.0.1",
            "managementIpAddress": "127.0.0.2",
            "port": settings.port,
            "managementPort": settings.port + 1,
            "metricsPort": settings.port + 2,
            "maxLinkNum": 1000,
            "httpsEnabled": False,
            "inferMode": "standard",
        },
        "BackendConfig": {
            "backendName": "mindieservice_llm_engine",
            "modelInstanceNumber": 1,
            "npuDeviceIds": [list(range(settings.tp))],
            "tokenizerProcessNumber": 8,
            "multiNodesInferEnabled": False,
            "ModelDeployConfig": {
                "maxSeqLen": length,
                "maxInputTokenLen": longest_prompt,
                "truncation": False,
                "ModelConfig": [model],
            },
            "ScheduleConfig": {
                "templateType": "Standard",
                "templateName": "Standard_LLM",
                "cacheBlockSize": _BLOCK_SIZE,
                "maxPrefillBatchSize": 50,
                "maxPrefillTokens": max(8192, longest_prompt),
                "maxBatchSize": 200,
                "maxIterTimes": 512,
            },
        },
    }
