"""Any checkpoint, opened: what a path holds is found out from the files in it.

Whatever opens here can be converted, verified and used as a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from telechat.checkpoint.folder import CONFIG, LAYOUTS, TRAINING_STATE, read_json
from telechat.checkpoint.formats import dcp, gguf_reading, hf, llama, mindspore
from telechat.checkpoint.formats.table import Checkpoint
from telechat.checkpoint.headers import read_header
from telechat.checkpoint.loader import config_from
from telechat.checkpoint.mindspore.container import SUFFIX
from telechat.checkpoint.mindspore.naming import is_mindspore
from telechat.checkpoint.mindspore.ranks import file_of, find_ranks, read_file
from telechat.checkpoint.mindspore.run_config import is_model_config, model_fields, read_run_config
from telechat.checkpoint.mindspore.telechat1_52b import PLAIN, RowOrder
from telechat.checkpoint.weights import NOTE
from telechat.errors import CheckpointError
from telechat.models import TeleChatConfig

GGUF = ".gguf"
# Kinds that need no config.json beside them, and heed none.
SELF_DESCRIBING = ("gguf", llama.NAME)
_PICKLES = (".bin", ".pt", ".pth")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz")
_YAML = (".yaml", ".yml")


def open_checkpoint(
    path: Path,
    *,
    config: Path | None = None,
    strategy: Path | None = None,
    row_order: RowOrder = PLAIN,
) -> Checkpoint:
    """Open a file, a folder, or a folder with the files of several ranks.

    Args:
        config: a config.json, or a MindFormers run file, where the checkpoint has none beside it.
        strategy: MindSpore strategy file or folder of a sliced checkpoint.
        row_order: of a MindSpore file of the TeleChat1-52B.

    Raises:
        CheckpointError, ConfigError: it is none, damaged or incomplete, or says too little.
    """
    if not path.exists():
        raise CheckpointError(f"There is no {path}.")
    kind = kind_of(path)
    if strategy is not None and kind != mindspore.NAME:
        raise CheckpointError(f"{path.name} is no sliced MindSpore checkpoint.", hint="Leave --strategy out.")
    if config is not None and kind in SELF_DESCRIBING:
        raise CheckpointError(
            f"{path.name} describes its model itself; {config.name} would say nothing.",
            hint="Leave --model-config (of chat, generate and serve: --config) out.",
        )
    if kind == "gguf":
        return gguf_reading.open_gguf(gguf_file_of(path))
    folder = path if path.is_dir() else path.parent
    if kind == llama.NAME:
        return llama.open_llama(folder)
    raw = _config_for(path, config)
    if kind == mindspore.NAME:
        shapes = {
            name: value.tensor.shape
            for file in _telling_files(path)
            for name, value in read_file(file).items()
        }
        return mindspore.open_mindspore(
            path, _config(raw, shapes), strategy, folder=folder, row_order=row_order
        )
    if kind == dcp.NAME:
        return dcp.open_dcp(path, raw)
    if path.is_file():
        return hf.open_named(hf.read_file(path), raw, path.name, folder)
    return hf.open_hf(path, raw)


def open_model_folder(folder: Path) -> Checkpoint:
    """Open a folder that `resolve_model` has found, which may stand for a checkpoint elsewhere."""
    if not (folder / NOTE).is_file():
        return open_checkpoint(folder)
    note = read_json(folder / NOTE)
    checkpoint = open_checkpoint(
        Path(note["weights"]),
        config=Path(note["config"]) if note.get("config") else None,
        strategy=Path(note["strategy"]) if note.get("strategy") else None,
    )
    return replace(checkpoint, folder=folder)


def kind_of(path: Path) -> str:
    """Which format a path holds: `hf`, `llama`, `mindspore`, `gguf` or `dcp`.

    Raises:
        CheckpointError: none of them.
    """
    if path.is_file():
        if path.suffix == GGUF:
            return "gguf"
        if path.suffix == SUFFIX:
            return mindspore.NAME
        if path.suffix in (".safetensors", *_PICKLES):
            return _kind_by_names(hf.read_file(path), path)
        known = f"Known are {SUFFIX}, .safetensors, .bin and {GGUF} files."
        hint = "Unpack it first." if path.suffix in _ARCHIVES else known
        raise CheckpointError(f"{path.name} is no checkpoint.", hint=hint)
    # As `is_foreign` decides: an official folder is one, whatever else lies in it.
    if any((path / name).is_file() for name in LAYOUTS):
        return _kind_of_folder(path)
    if (path / TRAINING_STATE).is_file():
        return dcp.NAME
    if find_ranks(path):
        return mindspore.NAME
    suffixes = {child.suffix for child in path.iterdir() if child.is_file()}
    if SUFFIX in suffixes or GGUF in suffixes:
        return mindspore.NAME if SUFFIX in suffixes else "gguf"
    if (path / CONFIG).is_file():
        return hf.NAME  # whose error says what is missing
    raise CheckpointError(f"{path} holds no checkpoint.", hint="Name a model folder, or a checkpoint file.")


def _kind_of_folder(path: Path) -> str:
    if (path / CONFIG).is_file() and llama.is_llama(read_json(path / CONFIG)):
        return llama.NAME
    single = path / LAYOUTS[1]
    return _kind_by_names(read_header(single), path) if single.is_file() else hf.NAME


def _kind_by_names(names: Iterable[str], path: Path) -> str:
    if is_mindspore(names):
        return mindspore.NAME
    config = path.parent / CONFIG if path.is_file() else path / CONFIG
    return llama.NAME if config.is_file() and llama.is_llama(read_json(config)) else hf.NAME


def gguf_file_of(path: Path) -> Path:
    """The file itself, or the only one of a folder.

    Raises:
        CheckpointError: it has several.
    """
    if path.is_file():
        return path
    files = sorted(path.glob(f"*{GGUF}"))
    if len(files) > 1:
        raise CheckpointError(f"{path} holds {len(files)} GGUF files.", hint="Name one of them.")
    return files[0]


def _telling_files(path: Path) -> list[Path]:
    """Files that together have all kinds of tensors: of several ranks, the first and the last stage's."""
    if path.is_file():
        return [path]
    ranks = find_ranks(path) or [path]
    return [file_of(folder) for folder in dict.fromkeys((ranks[0], ranks[-1]))]


def _config_for(path: Path, named: Path | None) -> dict[str, Any]:
    """Contents of a config.json: the one named, else the one beside the weights."""
    if named is not None:
        return _read_config_file(named)
    places = [path / CONFIG] if path.is_dir() else [path.parent / CONFIG]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{path.name} says nothing of attention heads, and there is no {CONFIG} beside it.",
            hint="Name one with --model-config (of chat, generate and serve: --config): a config.json, or "
            "MindFormers' predict_*.yaml.",
        )
    return _read_config_file(found)


def _read_config_file(named: Path) -> dict[str, Any]:
    path = named / CONFIG if named.is_dir() else named
    if path.suffix in _YAML:
        return read_run_config(path)
    raw = read_json(path)
    if isinstance(raw.get(llama.ORIGIN), dict):  # of a Llama folder of ours
        return dict(raw[llama.ORIGIN])
    return model_fields({"model": {"model_config": raw}}, path.name) if is_model_config(raw) else raw


def read_model_config(path: Path) -> TeleChatConfig:
    """The model described by a config.json, a folder with one, or a MindFormers run file.

    Raises:
        ConfigError: there is none, or it describes no TeleChat model.
    """
    return config_from(_read_config_file(path), {})


def _config(raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> TeleChatConfig:
    """The config completed from what MindSpore's names say: is the head tied, how many experts are there."""
    names: dict[str, tuple[int, ...]] = dict.fromkeys(shapes, ())
    stacked = next((s for name, s in shapes.items() if name.endswith("feed_forward.ffn.w2.bias")), None)
    if stacked is not None:
        names[f"transformer.h.0.mlp.local_experts.{stacked[1] - 1}.down_proj.bias"] = ()
    return config_from(raw, names)
