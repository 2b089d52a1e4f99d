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
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from telechat.checkpoint.folder import CONFIG, find_weights, read_json
from telechat.checkpoint.headers import read_header
from telechat.checkpoint.hub import resolve_model
from telechat.checkpoint.names import EMBEDDING, HEAD, canonical_names, count_experts
from telechat.checkpoint.pages import empty_pages
from telechat.checkpoint.quantized import PACKED, PackedWeights, expected_tensors, read_scheme, split_name
from telechat.checkpoint.weights import StoredWeights, open_weights
from telechat.device import CPU, dtype_name, parse_dtype, resolve_device, supports_bfloat16
from telechat.errors import CheckpointError, ConfigError
from telechat.models import RopeMode, TeleChatConfig, TeleChatModel, build_model, parameter_table
from telechat.models.quantized import check_scheme, is_quantisable, put_weight, round_parameter, untied
from telechat.ops.quantized import QuantizedWeight, WeightScheme

log = logging.getLogger(__name__)

PACKED_HEAD = HEAD.removesuffix(".weight") + PACKED
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

    def cut_quantized(self, name: str, weight: QuantizedWeight) -> QuantizedWeight | None:
        """As `cut`, of a quantised weight."""
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
        quantize: `int8` or `int4`: round the weights to nearest as they are read. Folders that are quantised
            already are read as they are.
        group_size: inputs that share a scale then: 32 (the default), 64 or 128.

    Returns:
        The model in eval mode on the device.

    Raises:
        ConfigError, CheckpointError, DeviceError, HubError: one line each, saying what to do.
    """
    folder = resolve_model(path_or_name)
    raw = read_json(folder / CONFIG)
    packed = read_scheme(raw)
    rounding = _rounding(quantize, group_size, folder, packed)
    weights = open_weights(folder)
    stored_config = config_from(raw, {name: stored.shape for name, stored in weights.tensors.items()})
    config = stored_config
    if rounding is not None:
        check_scheme(stored_config, rounding)
        config = untied(stored_config)
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
    filling = Filling(model, device=place, dtype=chosen, part=part, packed=packed, rounding=rounding)
    filling.fill(stored_config, weights)
    return model.eval()


def _rounding(
    quantize: str | None, group_size: int | None, folder: Path, stored: WeightScheme | None
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
            f"{folder.name} is quantised already, to {stored.name} in groups of {stored.group_size}.",
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
        completed["tie_word_embeddings"] = not {HEAD, PACKED_HEAD} & set(tensors)
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


def match_tensors(
    config: TeleChatConfig, weights: StoredWeights, scheme: WeightScheme | None = None
) -> dict[str, str]:
    """Name by the table -> name on disk of every tensor to read, having checked names, shapes and dtypes.

    With a `scheme`, each linear layer or head may be stored in integers; their names are those of the format.

    Raises:
        CheckpointError: a tensor is missing, extra, misshapen or of a wrong dtype; names it.
    """
    names = canonical_names(weights.tensors)
    expected = _expected(config, names, scheme)
    if config.tie_word_embeddings and HEAD in names:
        _check_tied_head(weights, names)
        del names[HEAD]
    missing = [name for name in expected if name not in names]
    if missing:
        raise CheckpointError(f"The checkpoint lacks {_listed(missing)}.", hint=_missing_hint(missing))
    extra = [names[name] for name in names if name not in expected]
    if extra:
        raise CheckpointError(
            f"The checkpoint holds {_listed(extra)}, which this model has no place for.",
            hint="Check that config.json belongs to these weights.",
        )
    for name, (shape, dtypes) in expected.items():
        stored = weights.tensors[names[name]]
        if stored.shape != shape:
            raise CheckpointError(
                f"{stored.name} has shape {list(stored.shape)}; config.json says {list(shape)}.",
                hint="Check that config.json belongs to these weights.",
            )
        if stored.dtype not in dtypes:
            wanted = "floating point" if set(dtypes) <= set(_FLOATS) else dtype_name(dtypes[0])
            raise CheckpointError(f"{stored.name} has dtype {dtype_name(stored.dtype)}; expected {wanted}.")
    return names


def _expected(
    config: TeleChatConfig, names: Mapping[str, str], scheme: WeightScheme | None
) -> dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]:
    """Tensor by the table -> (shape, dtypes that will do)."""
    expected: dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]] = {}
    for parameter in parameter_table(config):
        if scheme is not None and is_quantisable(parameter):
            packed = expected_tensors(parameter.name, parameter.shape, scheme)
            if any(name in names for name in packed):
                expected.update(packed)
                continue
        expected[parameter.name] = (parameter.shape, _FLOATS)
    return expected


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


class Filling:
    """Gives every parameter of a model built on `meta` its memory and its values, one tensor at a time.

    Args:
        part: what of each tensor is kept.
        packed: how weights stored in integers are stored.
        rounding: round linear layers and head to this.
    """

    def __init__(
        self,
        model: TeleChatModel,
        *,
        device: torch.device,
        dtype: torch.dtype,
        part: Part | None = None,
        packed: WeightScheme | None = None,
        rounding: WeightScheme | None = None,
    ) -> None:
        self.model = model
        self.device, self.dtype = device, dtype
        self.part = part
        self.rounding = rounding
        self._packed = None if packed is None else PackedWeights(packed)
        self._empty = empty_pages if device == CPU else None
        table = parameter_table(model.config)
        self._rounded = {p.name for p in table if rounding and is_quantisable(p)}

    @torch.no_grad()
    def fill(self, stored_config: TeleChatConfig, weights: StoredWeights) -> None:
        """Read everything. `stored_config` is what config.json says; the model may have a head of its own."""
        scheme = self._packed.scheme if self._packed else None
        places = {stored: name for name, stored in match_tensors(stored_config, weights, scheme).items()}
        is_own_head = stored_config.tie_word_embeddings and not self.model.config.tie_word_embeddings
        for stored, tensor in weights.stream(places):
            name = places[stored]
            if is_own_head and name == EMBEDDING:
                self._take(HEAD, tensor, is_owned=False)
            self._take(name, tensor, is_owned=weights.owns_memory)

    def _take(self, name: str, tensor: Tensor, *, is_owned: bool) -> None:
        packed = split_name(name) if self._packed else None
        if packed is not None and self._packed is not None:
            weight = self._packed.add(*packed, tensor if is_owned else tensor.clone())
            if weight is not None:
                self._put(packed[0], weight)
            return
        kept = tensor if self.part is None else self.part.cut(name, tensor)
        if kept is None:
            return
        if name in self._rounded and self.rounding is not None:
            rounded = round_parameter(name, kept.to(self.device), self.rounding, empty=self._empty)
            put_weight(self.model, name, rounded)
            return
        owner, _, leaf = name.rpartition(".")
        if is_owned and kept is tensor and (tensor.dtype, tensor.device) == (self.dtype, self.device):
            values = tensor
        else:
            make = self._empty or (lambda shape, dtype: torch.empty(shape, dtype=dtype, device=self.device))
            values = make(tuple(kept.shape), self.dtype).copy_(kept)
        setattr(self.model.get_submodule(owner), leaf, nn.Parameter(values))

    def _put(self, name: str, weight: QuantizedWeight) -> None:
        kept = weight if self.part is None else self.part.cut_quantized(name, weight)
        if kept is not None:
            # Of a part, a copy: a view would keep the whole alive.
            qweight, scales = (
                tensor.to(self.device) if kept is weight else tensor.contiguous().clone().to(self.device)
                for tensor in (kept.qweight, kept.scales)
            )
            put_weight(self.model, name, QuantizedWeight(weight.scheme, qweight, scales))
