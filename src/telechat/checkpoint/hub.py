"""Names into folders: `demo`, a path, or a model id on a hub.

An id is downloaded once and kept; from then on no network is needed. Code is never downloaded: only
configuration, tokenizer and weights are asked for, by name.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

import httpx
from filelock import FileLock

from telechat.checkpoint.download import fetch
from telechat.checkpoint.folder import (
    BIN,
    BIN_INDEX,
    CONFIG,
    GENERATION_CONFIG,
    GPTQ_SETTINGS,
    LAYOUTS,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    find_weights,
    is_gptq_file,
)
from telechat.checkpoint.foreign import is_foreign
from telechat.checkpoint.hub_api import HUBS, HUGGINGFACE, Hub, HubFile, Listing, huggingface_home
from telechat.errors import CheckpointError, HubError, UsageError

log = logging.getLogger(__name__)

DEMO = "demo"
HUB_VARIABLE = "TELECHAT_HUB"
CACHE_VARIABLE = "TELECHAT_CACHE"
OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
MARKER = "telechat-download.json"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SMALL_FILES = (
    CONFIG,
    GENERATION_CONFIG,
    GPTQ_SETTINGS,
    "quant_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)


def demo_folder() -> Path:
    """The folder of the demo model that comes with the package.

    Raises:
        CheckpointError: this installation lacks it.
    """
    folder = Path(__file__).resolve().parents[1] / "demo_model"
    if not (folder / CONFIG).is_file():
        raise CheckpointError("This installation has no demo model.", hint="Run: make demo-model")
    return folder


def resolve_model(name: str | Path) -> Path:
    """The folder that holds a model.

    Args:
        name: `demo`, an existing folder, a checkpoint in any format that `formats` opens (then the folder is
            a reference to it), or a hub id: `org/name` (from the hub that TELECHAT_HUB names, else
            Hugging Face), `huggingface:org/name` or `modelscope:org/name`. Ids are downloaded once and kept
            under TELECHAT_CACHE (~/.cache/telechat); a copy in Hugging Face's own cache is used where there
            is one.

    Raises:
        UsageError: neither a folder nor an id.
        HubError: the hub cannot be reached, refuses, or delivers damaged files.
    """
    text = os.fspath(name)
    if text == DEMO:
        return demo_folder()
    path = Path(text).expanduser()
    if is_foreign(path):
        # Needs torch, which the commands that only want a tokenizer do without.
        from telechat.checkpoint.formats.reference import reference_folder

        return reference_folder(path)
    if path.is_dir():
        return path
    if path.is_file():
        raise UsageError(f"{text} is a file.", hint="Name the folder that holds config.json and the weights.")
    prefix, _, rest = text.rpartition(":")
    if isinstance(name, Path) or not _HUB_ID.fullmatch(rest) or prefix not in ("", *HUBS):
        raise UsageError(
            f"There is no folder {text}.",
            hint="Give a model folder, an id such as TeleAI/TeleChat2-7B or modelscope:org/name, or demo.",
        )
    return find_or_download(_hub(prefix), rest)


def _hub(prefix: str) -> Hub:
    name = prefix or os.environ.get(HUB_VARIABLE) or HUGGINGFACE.name
    if name not in HUBS:
        raise UsageError(f"{HUB_VARIABLE} is {name!r}.", hint=f"Set it to {' or '.join(HUBS)}.")
    return HUBS[name]


def is_offline() -> bool:
    """Whether the environment forbids the network (HF_HUB_OFFLINE, as Hugging Face's tools read it)."""
    return os.environ.get(OFFLINE_VARIABLE, "").upper() in ("1", "ON", "YES", "TRUE")


def cache_folder() -> Path:
    """Where downloaded models are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/telechat").expanduser()


def find_or_download(hub: Hub, model_id: str) -> Path:
    """The local folder of a model on a hub, downloaded when it is not on this machine yet.

    Raises:
        HubError: offline, unreachable, refused, damaged, or too little disk space.
    """
    folder = cache_folder() / hub.name / model_id.replace("/", "--")
    if is_complete(folder):
        return folder
    known = _in_huggingface_cache(model_id) if hub is HUGGINGFACE else None
    if known is not None:
        log.info("%s: using the copy in %s", model_id, known)
        return known
    if is_offline():
        raise HubError(
            f"{model_id} is not on this machine, and {OFFLINE_VARIABLE} forbids downloading it.",
            hint=f"Unset {OFFLINE_VARIABLE}, or give the folder of a model.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes that start the same model must not write into the same part.
        with FileLock(folder / ".lock"):
            if not is_complete(folder):
                _download(hub, model_id, folder)
    except OSError as error:
        raise HubError(f"Cannot keep {model_id} in {folder}: {error.strerror or error}.") from error
    return folder


def is_complete(folder: Path) -> bool:
    """Whether a download into `folder` has finished and all its files are still there in full."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == num_bytes for name, num_bytes in sizes.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _in_huggingface_cache(model_id: str) -> Path | None:
    """A complete snapshot of the main branch in Hugging Face's own cache, or None."""
    hub_cache = Path(os.environ.get("HF_HUB_CACHE") or huggingface_home() / "hub").expanduser()
    repository = hub_cache / f"models--{model_id.replace('/', '--')}"
    try:
        commit = (repository / "refs" / HUGGINGFACE.revision).read_text(encoding="utf-8").strip()
        snapshot = repository / "snapshots" / commit
        find_weights(snapshot)
    except (OSError, CheckpointError):
        return None
    has_tokenizer = any((snapshot / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    return snapshot if has_tokenizer and (snapshot / CONFIG).is_file() else None


def _download(hub: Hub, model_id: str, folder: Path) -> None:
    with httpx.Client(timeout=_TIMEOUT, follow_redirects=True) as client:
        listing = hub.list_files(client, model_id)
        listed = {file.path: file for file in listing.files}
        layout = next((name for name in LAYOUTS if name in listed), None)
        layout = layout or next((name for name in sorted(listed) if is_gptq_file(name)), None)
        if layout is None or CONFIG not in listed:
            lacks = CONFIG if CONFIG not in listed else "weights such as " + SAFETENSORS
            raise HubError(f"{model_id} on {hub.endpoint} has no {lacks}.", hint="Check the id.")
        small = [listed[name] for name in (*_SMALL_FILES, layout) if name in listed]
        for file in small:
            _fetch_missing(client, hub, model_id, file, folder)
        weights = _weight_files(model_id, folder, layout, listed)
        _check_space(model_id, folder, weights)
        for file in weights:
            _fetch_missing(client, hub, model_id, file, folder)
    _mark(hub, model_id, folder, listing, [*small, *weights])


def _weight_files(model_id: str, folder: Path, layout: str, listed: dict[str, HubFile]) -> list[HubFile]:
    """The shards that a downloaded index names."""
    if layout in (SAFETENSORS, BIN) or is_gptq_file(layout):
        return []
    assert layout in (SAFETENSORS_INDEX, BIN_INDEX)
    try:
        names = sorted(set(json.loads((folder / layout).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise HubError(f"{layout} of {model_id} has no weight_map from tensors to files.") from error
    for name in names:
        if name not in listed or Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise HubError(
                f"{layout} of {model_id} names {name!r}, which the hub does not list as a weight file."
            )
    return [listed[name] for name in names]


def _check_space(model_id: str, folder: Path, files: list[HubFile]) -> None:
    parts = [folder / file.path for file in files] + [folder / f"{file.path}.part" for file in files]
    needed = sum(file.num_bytes for file in files) - sum(
        path.stat().st_size for path in parts if path.exists()
    )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise HubError(
            f"{model_id} needs {needed / 1e9:.1f} GB; {folder} has {free / 1e9:.1f} GB free.",
            hint=f"Make room, or set {CACHE_VARIABLE} to a folder on a larger disk.",
        )


def _fetch_missing(client: httpx.Client, hub: Hub, model_id: str, file: HubFile, folder: Path) -> None:
    target = folder / file.path
    if target.exists() and target.stat().st_size == file.num_bytes:
        return
    log.info("downloading %s (%.1f MB) of %s", file.path, file.num_bytes / 1e6, model_id)
    fetch(client, hub, model_id, file, target)


def _mark(hub: Hub, model_id: str, folder: Path, listing: Listing, files: list[HubFile]) -> None:
    """Note that the download is complete; written last, and at once."""
    content = {
        "hub": hub.endpoint,
        "model": model_id,
        "revision": listing.revision,
        "files": {file.path: file.num_bytes for file in files},
    }
    temporary = folder / (MARKER + ".part")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / MARKER)
