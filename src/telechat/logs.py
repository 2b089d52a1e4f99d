"""Logging for the command line: where messages go and how much is shown.

Only the command line calls this; library code takes `logging.getLogger(__name__)` and leaves the set-up to
the program that imports it. Results go to stdout, so the log goes to stderr.
"""

from __future__ import annotations

import logging
import sys

LEVELS = ("debug", "info", "warning", "error")

# These tell the story of every request to a hub at info level; ours says what matters.
_CHATTY = ("httpx", "httpcore", "urllib3", "filelock", "asyncio", "huggingface_hub")

# Tells in two kilobytes what is raised as an error as well.
_REPEATING = "c10d-NullHandler-dcp_logger"


def setup_logging(level: str) -> None:
    """Send the log to stderr from `level` (one of LEVELS) on; calling again replaces the earlier set-up."""
    number = getattr(logging, level.upper())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "_telechat", False):
            root.removeHandler(old)
    handler._telechat = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(number)
    if number > logging.DEBUG:
        logging.getLogger(_REPEATING).setLevel(logging.CRITICAL)
        for name in _CHATTY:
            logging.getLogger(name).setLevel(max(number, logging.WARNING))
