"""A model folder's JSON files and the list of its weight files, official layouts as they are on disk.

Reads names and sizes only; the tensors themselves are read in `weights.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telechat.checkpoint.parts import is_split, split_sizes
from telechat.errors import CheckpointError, ConfigError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
# In order of preference: an index before a single file, safetensors before pickles.
SAFETENSORS_INDEX = "model.safetensors.index.json"
SAFETENSORS = "model.safetensors"
BIN_INDEX = "pytorch_model.bin.index.json"
BIN = "pytorch_model.bin"
LAYOUTS = (SAFETENSORS_INDEX, SAFETENSORS, BIN_INDEX, BIN)
# The file that torch.distributed.checkpoint leaves beside the weights of a training.
TRAINING_STATE = ".metadata"
GPTQ_SETTINGS = "quantize_config.json"
_GPTQ_FILE = re.compile(r"gptq_model-\d+bit-(-?\d+)g\.(safetensors|bin)")


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a folder.

    Attributes:
        files: existing paths in order.
        placed: tensor name -> file name according to the index; empty when there is no index.
    """

    files: tuple[Path, ...]
    placed: dict[str, str]

    @property
    def is_safetensors(self) -> bool:
        """False for pickled `.bin` files."""
        return self.files[0].suffix == ".safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is an object.

    Raises:
        ConfigError: missing, unreadable or malformed; says where.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path.parent} has no {path.name}.", hint="Point at a folder that holds a TeleChat model."
        ) from error
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} line {error.lineno} is not valid JSON: {error.msg}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__} at its top level; expected an object.")
    return raw


def write_json(path: Path, value: object) -> None:
    """A JSON file as the official tools lay it out."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_generation_config(folder: str | Path) -> dict[str, Any]:
    """The folder's `generation_config.json`; empty when there is none."""
    path = Path(folder) / GENERATION_CONFIG
    return read_json(path) if path.exists() else {}


def find_weights(folder: Path) -> WeightFiles:
    """Locate the weight files of a folder.

    Raises:
        CheckpointError: none found, or the index names a file that is not there.
    """
    layout = next((name for name in LAYOUTS if (folder / name).exists()), None) or _quantised_file(folder)
    if layout is None and is_split(folder):
        sizes = " and ".join(map(str, sorted(split_sizes(folder))))
        raise CheckpointError(
            f"{folder} is split and compressed for tp {sizes}; only an engine loads that.",
            hint=f"Use it with --tp {sizes}, or name the W8A8S folder that it was made of.",
        )
    if layout is None:
        raise CheckpointError(
            f"{folder} holds no weights.", hint=f"Expected one of {', '.join(LAYOUTS)} beside {CONFIG}."
        )
    if not layout.endswith(".index.json"):
        return WeightFiles((folder / layout,), {})
    placed = _read_index(folder / layout)
    names = sorted(set(placed.values()))
    for name in names:
        # Only plain names: an index must not reach out of its folder.
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{layout} names the file {name!r}; expected a plain file name.")
        if not (folder / name).is_file():
            count = sum(place == name for place in placed.values())
            raise CheckpointError(
                f"{folder} lacks {name}, which {layout} says holds {count} tensors.", hint="Download it."
            )
    return WeightFiles(tuple(folder / name for name in names), placed)


def _quantised_file(folder: Path) -> str | None:
    """The weights, or their index, under a name that tools of quantisation use."""
    if folder.is_dir():
        for pattern in ("quant_model_weight_*.safetensors.index.json", "quant_model_weight_*.safetensors"):
            found = sorted(path.name for path in folder.glob(pattern))
            if len(found) == 1:
                return found[0]
    return _gptq_file(folder)


def _gptq_file(folder: Path) -> str | None:
    """The one file that GPTQ tools of the first generation write: its stem is in their settings, or usual."""
    settings = folder / GPTQ_SETTINGS
    stem = read_json(settings).get("model_file_base_name") if settings.is_file() else None
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for suffix in (".safetensors", ".bin"):
        if isinstance(stem, str) and stem + suffix in present:
            return stem + suffix
        found = [name for name in present if is_gptq_file(name) and name.endswith(suffix)]
        if len(found) > 1:
            raise CheckpointError(
                f"{folder} holds {', '.join(found)}; which of them is meant?", hint="Keep one of them."
            )
        if found:
            return found[0]
    return None


def is_gptq_file(name: str) -> bool:
    """Whether a file name is the usual one of GPTQ tools, `gptq_model-4bit-128g.bin`."""
    return _GPTQ_FILE.fullmatch(name) is not None


def _read_index(path: Path) -> dict[str, str]:
    try:
        placed = read_json(path).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(error.message, hint="Download the file again.") from error
    if (
        not isinstance(placed, dict)
        or not placed
        or not all(isinstance(name, str) for name in placed.values())
    ):
        raise CheckpointError(
            f"{path.name} has no weight_map from tensors to files.", hint="Download it again."
        )
    return placed
