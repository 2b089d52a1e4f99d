"""A checkpoint in one screen: what the folder is, its config, and its tensors with their repetitions folded.

Reads headers only, and shows what is stored under the names it is stored by.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telechat.checkpoint.folder import CONFIG, read_json
from telechat.checkpoint.formats import dcp, gguf_file, hf
from telechat.checkpoint.formats.opening import gguf_file_of, kind_of, open_checkpoint
from telechat.checkpoint.mindspore.naming import is_weight
from telechat.checkpoint.mindspore.ranks import read_ranks
from telechat.checkpoint.weights import open_weights
from telechat.device import dtype_name
from telechat.errors import TelechatError
from telechat.models import TeleChatConfig

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_TITLES = {
    "hf": "official layout",
    "llama": "Llama",
    "mindspore": "MindSpore",
    "gguf": "GGUF",
    "dcp": "training checkpoint (torch.distributed.checkpoint)",
}


@dataclass(frozen=True)
class Entry:
    """A stored tensor: dtype in the format's spelling, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


def describe(path: Path) -> list[str]:
    """The lines of the screen.

    Raises:
        CheckpointError: no checkpoint, or damaged.
    """
    kind = kind_of(path)
    entries, num_ranks = _entries(path, kind)
    lines = [f"{path}: {_TITLES[kind]}" + (f", slices of {num_ranks} ranks" if num_ranks > 1 else "")]
    lines += _gguf_lines(path) if kind == "gguf" else _config_lines(path)
    dtypes = Counter(entry.dtype for entry in entries.values())
    total = sum(entry.num_bytes for entry in entries.values())
    of = " of rank_0" if num_ranks > 1 else ""
    lines.append(
        f"{len(entries)} tensors{of}, {total / 1e6:.1f} MB: "
        + ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common())
    )
    if kind == "mindspore":
        lines += _mindspore_lines(entries)
    return lines + _table(entries)


def _entries(path: Path, kind: str) -> tuple[dict[str, Entry], int]:
    """(stored tensors by name, number of ranks)."""
    if kind == "mindspore":
        ranks = read_ranks(path)
        values = {n: Entry(v.kind, v.dims, v.tensor.num_bytes) for n, v in ranks[0].items()}
        return values, len(ranks)
    if kind == "gguf":
        stored = gguf_file.read_gguf(gguf_file_of(path)).tensors
        return {n: Entry(s.encoding.name, s.shape, s.tensor.num_bytes) for n, s in stored.items()}, 1
    if kind == "dcp":
        tensors = dcp.stored_tensors(path)
    elif path.is_file():
        tensors = hf.read_file(path)
    else:
        tensors = hf.lazy_tensors(open_weights(path))
    return {n: Entry(dtype_name(t.dtype), t.shape, t.num_bytes) for n, t in tensors.items()}, 1


def _gguf_lines(path: Path) -> list[str]:
    """A GGUF file says itself what it is."""
    try:
        checkpoint = open_checkpoint(path)
    except TelechatError as error:
        return [error.message]
    where = "tokenizer inside" if checkpoint.inside else "tokenizer beside it, or none that can be read"
    return [*_facts(checkpoint.config), where]


def _config_lines(path: Path) -> list[str]:
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file():
        return [f"no {CONFIG}: name one with --model-config to convert it"]
    try:
        raw = read_json(folder / CONFIG)
        config = TeleChatConfig.from_hf(raw.get("telechat_config") or raw)
    except TelechatError as error:
        return [f"{CONFIG}: {error.message}"]
    return [*_facts(config), *_quantised(raw)]


def _quantised(raw: Mapping[str, Any]) -> list[str]:
    section = raw.get("quantization_config")
    if not isinstance(section, Mapping):
        return []
    told = {key: section[key] for key in ("bits", "group_size") if key in section}
    return [f"quantised: {section.get('quant_method', 'unknown method')} " + json.dumps(told)[1:-1]]


def _facts(config: TeleChatConfig) -> list[str]:
    experts = (
        f", {config.moe.num_experts} experts ({config.moe.num_experts_per_token} a token)"
        if config.moe
        else ""
    )
    head = "tied head" if config.tie_word_embeddings else "own head"
    return [
        f"{config.num_layers} layers, hidden {config.hidden_size}, {config.num_heads} heads "
        f"({config.num_kv_heads} for keys and values), inner width {config.ffn_hidden_size}{experts}, "
        f"vocabulary {config.vocab_size}, {head}",
        f"trained at {config.training_seqlen} tokens, rotary base {config.rope.base:g}, "
        f"scheme {config.rope.scheme}",
    ]


def _mindspore_lines(entries: Mapping[str, Entry]) -> list[str]:
    names = list(entries)
    facts = []
    if any(name.endswith("attention.w_qkv.weight") for name in names):
        facts.append("qkv_concat layout")
    elif any(name.endswith("attention.wk_v.weight") for name in names):
        facts.append("kv_concat layout")
    if any("lora_" in name.lower() for name in names):
        facts.append("with LoRA matrices")
    state = sum(not is_weight(name) for name in names)
    if state:
        facts.append(f"{state} values of a training state")
    return [", ".join(facts)] if facts else []


def _table(entries: Mapping[str, Entry]) -> list[str]:
    """One line for all tensors whose names differ in numbers alone and that are otherwise alike."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for name, entry in entries.items():
        groups.setdefault((_NUMBER.sub("*", name), entry.dtype, entry.shape), []).append(entry.num_bytes)
    width = max((len(name) for name, _, _ in groups), default=0)
    return [
        f"  {name:<{width}}  {len(sizes):>5} x {dtype:<8} {list(shape)!s:<18} {sum(sizes) / 1e6:>10.2f} MB"
        for (name, dtype, shape), sizes in groups.items()
    ]
