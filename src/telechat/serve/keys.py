"""API keys: which ones open the service, and where a generated one is kept.

Knows files and settings, and imports nothing heavy; the check of requests is in `auth`.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import sys
from pathlib import Path

from telechat.errors import ConfigError
from telechat.serve.settings import ServeSettings, is_sound_key

logger = logging.getLogger(__name__)


def resolve_keys(settings: ServeSettings) -> tuple[str, ...]:
    """The keys that open the service besides those of a key file; empty lets everybody in.

    A public host without a key gets a generated one, unless anonymous access is allowed.

    Raises:
        ConfigError: the key file cannot be read or written.
    """
    needs_none = settings.allow_anonymous or settings.is_loopback or settings.key_file is not None
    if settings.api_keys or needs_none:
        return settings.api_keys
    return (generated_key(settings.api_key_file),)


def generated_key(path: Path | None = None) -> str:
    """The key kept in `path`; made, kept there and printed on stderr the first time.

    Args:
        path: a file of ours; None is `default_key_file()`.

    Raises:
        ConfigError: the file cannot be read or written.
    """
    path = path or default_key_file()
    try:
        kept = _read_key(path)
        if kept is not None:
            logger.info("clients need the API key kept in %s", path)
            return kept
        key = f"sk-{secrets.token_urlsafe(32)}"
        _write_key(path, key)
    except OSError as error:
        raise ConfigError(
            f"Cannot keep the API key in {path}: {error.strerror}.",
            hint="Give a key with --api-key, or another home for the file with XDG_CONFIG_HOME.",
        ) from error
    print(f"API key (shown only now, kept in {path}): {key}", file=sys.stderr, flush=True)
    return key


def default_key_file() -> Path:
    """`telechat/api_key` in the folder where this user's programs keep their settings."""
    if os.name == "nt":
        root = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    else:
        root = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return root / "telechat" / "api_key"


def _read_key(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
        key = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        key = ""
    if not is_sound_key(key):
        raise ConfigError(f"The API key file {path} does not hold a key.", hint="Delete it to get a new key.")
    if os.name != "nt" and stat.S_IMODE(mode) & 0o077:
        logger.warning("%s could be read by other users; now it cannot", path)
        path.chmod(0o600)
    return key


def _write_key(path: Path, key: str) -> None:
    """Create the file, readable by its owner only from its first byte on."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(key + "\n")
