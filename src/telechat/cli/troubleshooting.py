"""Which entry of docs/troubleshooting.md explains a message.

A table from entries to messages, in which … stands for what differs each time. A test keeps it, the page and
the sources together. Knows nothing of how messages are shown.
"""

from __future__ import annotations

import re

PAGE = "docs/troubleshooting.md"

# The heading of an entry, as a link has it -> messages that it explains. In both, the first match counts.
ENTRIES: dict[str, tuple[str, ...]] = {
    "a-port-is-in-use": ("Port … on … is in use", "Port … needs administrator rights"),
    "out-of-memory": ("Out of memory. Lower --max-batch-size",),
    "pytorch-does-not-fit-the-device": ("torch was built for other devices",),
    "the-device-is-not-there": (
        "was asked for, but this machine has …",
        "was asked for, but only … of type … are visible",
    ),
    "flash-attention-cannot-run": ("--attention flash cannot run",),
    "no-c-compiler": ("no C compiler was found", "The CPU kernels are not available"),
    "the-prompt-is-too-long": ("The prompt has … tokens; this model accepts …",),
    "a-rank-ended": ("was ended by signal …", "The ranks cannot meet on port …"),
    "the-engine-ended": ("The engine's process … while loading the model",),
    "no-such-model": ("There is no folder …", "… is not on this machine, and … forbids downloading it"),
    "the-hub-does-not-answer": ("Cannot reach …", "… refuses access to …", "… could not be downloaded"),
    "the-disk-is-too-small": ("… needs … GB; … has … GB free", "needs … GB more; … has … GB free"),
    "weights-are-incomplete": (
        "… lacks …, which … says holds … tensors",
        "is not a complete safetensors file",
        "is a Git LFS pointer, not weights",
        "… is truncated or damaged",
    ),
    "a-package-is-missing": ("This needs the package …, which is not installed",),
    "a-bundle-cannot-be-made": (
        "pip could not …; its last lines say why",
        "There is no wheel for this machine of …",
        "pip chooses packages by the system it runs on",
    ),
}


def link_for(message: str) -> str | None:
    """Where the documentation explains a message: a page and its entry; None where it does not."""
    for entry, patterns in ENTRIES.items():
        for pattern in patterns:
            if re.search(".*".join(map(re.escape, pattern.split("…"))), message, re.DOTALL):
                return f"{PAGE}#{entry}"
    return None
