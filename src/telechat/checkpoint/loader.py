"""Model folders into models: configuration, checks against the parameter table, then tensor by tensor.

The model is built without memory and each parameter is made in its final dtype on its final device when its
tensor is read, so the peak is the model plus one tensor; that holds too where weights are quantised while
they are read, or are quantised in the folder. A tensor that is missing, extra or of another shape is an error
that names it; nothing is ever filled in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from telechat.checkpoint.filling import Filling, Part
from telechat.checkpoint.folder import CONFIG, find_weights, read_json
from telechat.checkpoint.gptq import QWEIGHT
from telechat.checkpoint.headers import read_header
from telechat.checkpoint.hub import resolve_model
from telechat.checkpoint.names import HEAD, count_experts
from telechat.checkpoint.packed import PackedFormat
from telechat.checkpoint.packing_choice import read_packing
from telechat.checkpoint.parts import weights_folder
from telechat.checkpoint.quantized import PACKED
from telechat.checkpoint.weights import FLOATS, StoredWeights, open_weights
from telechat.device import dtype_name, parse_dtype, resolve_device, supports_bfloat16
from telechat.errors import CheckpointError, ConfigError
from telechat.models import RopeMode, TeleChatConfig, TeleChatModel, build_model
from telechat.models.quantized import check_scheme, untied
from telechat.ops.quantized import WeightScheme

log = logging.getLogger(__name__)

_HEADS = (HEAD, HEAD.removesuffix(".weight") + PACKED, HEAD.removesuffix("weight") + QWEIGHT)
_EXPERT_COUNT = "expert_num"


def load_model(
    path_or_name: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    attention: str = "auto",
    rope_mode: RopeMode = "official",
    static_length: int | None = None,
    part: Part | None = None,
    quantize: str | None = None,
    group_size: int | None = None,
) -> TeleChatModel:
    """Load a model.

    Args:
        path_or_name: a folder, a hub id (`org/name`, `modelscope:org/name`), or `demo`.
        device: `auto` (the accelerator where there is one) or a device name.
        dtype: `auto` or float32, bfloat16, float16; see `choose_dtype`.
        attention: `auto`, `flash`, `sdpa` or `reference`.
        rope_mode, static_length: what happens past the training length; see `TeleChatModel`.
        part: load only this much of it.
        quantize: round the weights to nearest as they are read, to `int8` or `int4`; they must be floats.
        group_size: inputs that share a scale then: 32 (the default), 64 or 128.

    Returns:
        The model in eval mode on the device.

    Raises:
        ConfigError, CheckpointError, DeviceError, HubError: one line each, saying what to do.
    """
    folder = resolve_model(path_or_name)
    raw = read_json(folder / CONFIG)
    stored_in = _folder_with_weights(folder, part)
    packed = read_packing(stored_in, raw)
    rounding = _rounding(quantize, group_size, folder, packed)
    weights = open_weights(stored_in)
    stored_config = config_from(raw, {name: stored.shape for name, stored in weights.tensors.items()})
    config = stored_config if rounding is None else _to_be_rounded(stored_config, rounding)
    place = resolve_device(device)
    chosen = choose_dtype(dtype, raw, weights, place)
    model = build_model(
        config,
        device="meta",
        target=place,
        dtype=chosen,
        attention=attention,
        rope_mode=rope_mode,
        static_length=static_length,
    )
    table = None
    if part is not None:
        part.prepare(model)
        if stored_in != folder:  # it is cut already
            table, part = part.parameters(), None
    filling = Filling(
        model, device=place, dtype=chosen, part=part, packed=packed, table=table, rounding=rounding
    )
    filling.fill(stored_config, weights)
    return model.eval()


def _folder_with_weights(folder: Path, part: Part | None) -> Path:
    """Where the weights lie: in the folder, or those of a part in one below it."""
    if part is None:
        return weights_folder(folder)
    return weights_folder(folder, rank=part.rank, tp=part.tp, ep=part.ep)


def _to_be_rounded(config: TeleChatConfig, rounding: WeightScheme) -> TeleChatConfig:
    """The configuration of the rounded model, having checked that every layer can be rounded."""
    check_scheme(config, rounding)
    return untied(config)


def _rounding(
    quantize: str | None, group_size: int | None, folder: Path, stored: PackedFormat | None
) -> WeightScheme | None:
    """The scheme to round to while reading, or None."""
    if quantize is None:
        if group_size is not None:
            raise ConfigError(
                f"group_size is {group_size}, but the weights are not to be quantised.",
                hint="Choose quantize int8 or int4 too.",
            )
        return None
    if stored is not None:
        raise ConfigError(
            f"{folder.name} is quantised already, to {stored.summary}.",
            hint="Leave out quantize.",
        )
    return WeightScheme.named(quantize, group_size)


def read_config(folder: str | Path) -> TeleChatConfig:
    """The configuration of a model folder.

    What config.json leaves open (is the head tied? how many experts?) is decided by the tensor list where the
    folder holds weights.

    Raises:
        ConfigError: no config.json, not a TeleChat model, or a wrong value.
        CheckpointError: weights that are damaged.
    """
    folder = Path(folder)
    raw = read_json(folder / CONFIG)
    return config_from(raw, _tensor_shapes(folder))


def _tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, as far as they cost nothing: an index gives names only, with empty shapes."""
    try:
        files = find_weights(folder)
    except CheckpointError:
        return {}
    if files.placed:
        return dict.fromkeys(files.placed, ())
    if files.is_safetensors:
        return {name: header.shape for name, header in read_header(files.files[0]).items()}
    return {name: stored.shape for name, stored in open_weights(folder).tensors.items()}


def config_from(raw: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> TeleChatConfig:
    """The configuration of `raw` (a config.json) completed from the tensor names, if there are any.

    Official configs are silent about two things. The 7B does not say that its head is tied: its checkpoint
    has no `lm_head.weight`. And no published name exists for the number of experts, which the names of the
    tensors give.
    """
    completed = dict(raw)
    if tensors and raw.get("tie_word_embeddings") is None:
        completed["tie_word_embeddings"] = not set(_HEADS) & set(tensors)
    experts = count_experts(tensors)
    if experts and TeleChatConfig.expert_count(raw) is None:
        completed[_EXPERT_COUNT] = experts
    return TeleChatConfig.from_hf(completed)


def choose_dtype(
    asked: str | torch.dtype, raw: Mapping[str, Any], weights: StoredWeights, device: torch.device
) -> torch.dtype:
    """The dtype to load in.

    `auto` is the config's `torch_dtype` (or `dtype`), else the dtype on disk, as far as the device computes
    in it: bf16 needs native support. On a CPU fp16 becomes fp32, which holds every fp16 number: CPUs multiply
    fp16 slowly or not at all, and bf16 would drop three bits of each weight. Ask for bfloat16 by name to save
    the memory.
    """
    if asked != "auto":
        return parse_dtype(asked)
    stored = stored_dtype(raw, weights)
    chosen = stored if stored in (torch.bfloat16, torch.float16) else torch.float32
    if chosen == torch.bfloat16 and not supports_bfloat16(device):
        chosen = torch.float32
    if chosen == torch.float16 and device.type == "cpu":
        chosen = torch.float32
    if chosen != stored:
        log.info("dtype: %s, because %s is not native to this device", dtype_name(chosen), dtype_name(stored))
    return chosen


def stored_dtype(raw: Mapping[str, Any], weights: StoredWeights) -> torch.dtype:
    """The dtype that config.json names, else the one most weights have on disk."""
    named = raw.get("torch_dtype") or raw.get("dtype")
    if named:
        return _config_dtype(named)
    floats = [tensor.dtype for tensor in weights.tensors.values() if tensor.dtype in FLOATS]
    return max(floats, key=floats.count) if floats else torch.float32


def _config_dtype(named: object) -> torch.dtype:
    value = getattr(torch, str(named).removeprefix("torch."), None)
    if not isinstance(value, torch.dtype) or value not in FLOATS:
        raise ConfigError(f"torch_dtype is {named!r}; it must be float32, bfloat16 or float16.")
    return value
