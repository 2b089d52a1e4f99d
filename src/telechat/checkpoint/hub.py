"""Names into folders: `demo`, a path, or a model id on a hub.

Never downloads code: only configuration, tokenizer and weights are asked for.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from telechat.errors import CheckpointError, UsageError

DEMO = "demo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_MODELSCOPE_PREFIX = "modelscope:"
_HUB_VARIABLE = "TELECHAT_HUB"


def demo_folder() -> Path:
    """The folder of the demo model that comes with the package.

    Raises:
        CheckpointError: this installation lacks it.
    """
    folder = Path(__file__).resolve().parents[1] / "demo_model"
    if not (folder / "config.json").is_file():
        raise CheckpointError("This installation has no demo model.", hint="Run: make demo-model")
    return folder


def resolve_model(name: str | Path) -> Path:
    """The folder that holds a model.

    Args:
        name: `demo`, an existing folder, or a hub id: `org/name` (Hugging Face, or ModelScope when TELECHAT_HUB is
            `modelscope`) or `modelscope:org/name`. Ids are downloaded once and kept.

    Raises:
        UsageError: neither a folder nor an id.
        HubError: the hub cannot be reached, refuses, or delivers damaged files.
    """
    text = os.fspath(name)
    if text == DEMO:
        return demo_folder()
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise UsageError(f"{text} is a file.", hint="Name the folder that holds config.json and the weights.")
    hub_id = text.removeprefix(_MODELSCOPE_PREFIX)
    if isinstance(name, Path) or not _HUB_ID.fullmatch(hub_id):
        raise UsageError(
            f"There is no folder {text}.",
            hint="Give a model folder, a hub id such as Tele-AI/TeleChat2-7B, or demo.",
        )
    hub = "modelscope" if text != hub_id else os.environ.get(_HUB_VARIABLE, "huggingface")
    raise UsageError(f"{hub} is not connected yet")
