"""Model folders into models: configuration, checks against the parameter table, then tensor by tensor.

The model is built without memory and each parameter is made in its final dtype on its final device when its
tensor is read, so the peak is the model plus one tensor. A tensor that is missing, extra or of another shape
is an error that names it; nothing is ever filled in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from telechat.checkpoint.folder import CONFIG, find_weights, read_json
from telechat.checkpoint.headers import read_header
from telechat.checkpoint.hub import resolve_model
from telechat.checkpoint.names import EMBEDDING, HEAD, canonical_names, count_experts
from telechat.checkpoint.weights import StoredWeights, open_weights
from telechat.device import dtype_name, parse_dtype, resolve_device, supports_bfloat16
from telechat.errors import CheckpointError, ConfigError
from telechat.models import RopeMode, TeleChatConfig, TeleChatModel, build_model, parameter_table

log = logging.getLogger(__name__)

_EXPERT_COUNT = "expert_num"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Part(Protocol):
    """One rank's part of a model that several ranks hold together."""

    def prepare(self, model: TeleChatModel) -> None:
        """Give a model without weights the structure of the part."""
        ...

    def cut(self, name: str, tensor: Tensor) -> Tensor | None:
        """The part of a tensor of the parameter table, a view; None when nothing of it is kept."""
        ...


def load_model(
    path_or_name: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    attention: str = "auto",
    rope_mode: RopeMode = "official",
    static_length: int | None = None,
    part: Part | None = None,
) -> TeleChatModel:
    """Load a model.

    Args:
        path_or_name: a folder, a hub id (`org/name`, `modelscope:org/name`), or `demo`.
        device: `auto` (the accelerator where there is one) or a device name.
        dtype: `auto` or float32, bfloat16, float16; see `choose_dtype`.
        attention: `auto`, `flash`, `sdpa` or `reference`.
        rope_mode, static_length: what happens past the training length; see `TeleChatModel`.
        part: load only this much of it.

    Returns:
        The model in eval mode on the device.

    Raises:
        ConfigError, CheckpointError, DeviceError, HubError: one line each, saying what to do.
    """
    folder = resolve_model(path_or_name)
    raw = read_json(folder / CONFIG)
    refuse_quantised(raw)
    weights = open_weights(folder)
    config = config_from(raw, {name: stored.shape for name, stored in weights.tensors.items()})
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
    if part is not None:
        part.prepare(model)
    fill(model, weights, device=place, dtype=chosen, part=part)
    return model.eval()


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
        completed["tie_word_embeddings"] = HEAD not in tensors
    experts = count_experts(tensors)
    if experts and TeleChatConfig.expert_count(raw) is None:
        completed[_EXPERT_COUNT] = experts
    return TeleChatConfig.from_hf(completed)


def refuse_quantised(raw: Mapping[str, Any]) -> None:
    """Raise for checkpoints of packed integers, which need another loader."""
    section = raw.get("quantization_config")
    if section:
        method = section.get("quant_method", "unknown") if isinstance(section, Mapping) else "unknown"
        raise CheckpointError(
            f"This checkpoint is quantised (method {method}); load_model reads fp32, fp16 and bf16 weights.",
            hint="Use the unquantised release.",
        )


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
    named = raw.get("torch_dtype") or raw.get("dtype")
    if named:
        stored = _config_dtype(named)
    else:
        floats = [tensor.dtype for tensor in weights.tensors.values() if tensor.dtype in _FLOATS]
        stored = max(floats, key=floats.count) if floats else torch.float32
    chosen = stored if stored in (torch.bfloat16, torch.float16) else torch.float32
    if chosen == torch.bfloat16 and not supports_bfloat16(device):
        chosen = torch.float32
    if chosen == torch.float16 and device.type == "cpu":
        chosen = torch.float32
    if chosen != stored:
        log.info("dtype: %s, because %s is not native to this device", dtype_name(chosen), dtype_name(stored))
    return chosen


def _config_dtype(named: object) -> torch.dtype:
    value = getattr(torch, str(named).removeprefix("torch."), None)
    if not isinstance(value, torch.dtype) or value not in _FLOATS:
        raise ConfigError(f"torch_dtype is {named!r}; it must be float32, bfloat16 or float16.")
    return value


def match_tensors(config: TeleChatConfig, weights: StoredWeights) -> dict[str, str]:
    """Table name -> name on disk for every parameter, having checked names, shapes and dtypes.

    Raises:
        CheckpointError: a tensor is missing, extra, misshapen or not of floating point; names it.
    """
    names = canonical_names(weights.tensors)
    table = {parameter.name: parameter for parameter in parameter_table(config)}
    if config.tie_word_embeddings and HEAD in names:
        _check_tied_head(weights, names)
        del names[HEAD]
    missing = [name for name in table if name not in names]
    if missing:
        raise CheckpointError(f"The checkpoint lacks {_listed(missing)}.", hint=_missing_hint(missing))
    extra = [names[name] for name in names if name not in table]
    if extra:
        raise CheckpointError(
            f"The checkpoint holds {_listed(extra)}, which this model has no place for.",
            hint="Check that config.json belongs to these weights.",
        )
    for name, parameter in table.items():
        stored = weights.tensors[names[name]]
        if stored.shape != parameter.shape:
            raise CheckpointError(
                f"{stored.name} has shape {list(stored.shape)}; config.json says {list(parameter.shape)}.",
                hint="Check that config.json belongs to these weights.",
            )
        if stored.dtype not in _FLOATS:
            raise CheckpointError(
                f"{stored.name} has dtype {dtype_name(stored.dtype)}; expected floating point."
            )
    return names


def _check_tied_head(weights: StoredWeights, names: Mapping[str, str]) -> None:
    """A tied model may store its head all the same, but then it must be the embedding."""
    pair = dict(weights.stream({names[HEAD], names[EMBEDDING]})) if EMBEDDING in names else {}
    if len(pair) == 2 and not torch.equal(pair[names[HEAD]], pair[names[EMBEDDING]]):
        raise CheckpointError(
            f"config.json ties the head to the embedding, but {HEAD} differs from {names[EMBEDDING]}.",
            hint="Set tie_word_embeddings to false in config.json.",
        )


def _missing_hint(missing: list[str]) -> str:
    if missing == [HEAD]:
        return "If the head is the embedding, set tie_word_embeddings to true in config.json."
    return "Check that config.json belongs to these weights, and that the download is complete."


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"


@torch.no_grad()
def fill(
    model: nn.Module,
    weights: StoredWeights,
    *,
    device: torch.device,
    dtype: torch.dtype,
    part: Part | None = None,
) -> None:
    """Give every parameter of a model built on `meta` its memory and its values, one tensor at a time."""
    names = match_tensors(model.config, weights)  # type: ignore[arg-type]
    places = {stored: name for name, stored in names.items()}
    for stored, tensor in weights.stream(places):
        kept = tensor if part is None else part.cut(places[stored], tensor)
        if kept is not None:
            _place(model, places[stored], kept, device, dtype)


def _place(model: nn.Module, name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    # A copy even where dtype and device agree: the stored tensor is the file, which may change or vanish.
    values = torch.empty(tensor.shape, dtype=dtype, device=device).copy_(tensor)
    setattr(module, leaf, nn.Parameter(values))
