"""The operator's key file: who may use the service, and how much.

    keys:
      alice:
        key: sk-…                 # or key_sha256: the key's SHA-256, so that the file opens nothing
        requests_per_minute: 60   # each limit may be left out
        tokens_per_minute: 20000
        concurrency: 4
        load_adapters: true       # may load and unload adapters; false where left out

Knows the file, not what is done with the keys.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from telechat.config import from_mapping, read_yaml
from telechat.errors import ConfigError
from telechat.serve.auth import Key
from telechat.serve.limits import Limits
from telechat.serve.settings import is_sound_key

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, kw_only=True)
class _File:
    """The top level of the file."""

    keys: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One key as written: exactly one of `key` and `key_sha256`, limits, and what else it may do."""

    key: str | None = None
    key_sha256: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    load_adapters: bool = False


def read_key_file(path: Path) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        ConfigError: it cannot be read, holds no key, has an unknown field (the nearest is named), a key
            twice, or a limit below 1.
    """
    file = from_mapping(_File, read_yaml(path), source=str(path))
    if not file.keys:
        raise ConfigError(f"{path} holds no keys.", hint="List them under `keys:`, each with a name.")
    found: dict[bytes, Key] = {}
    for name, raw in file.keys.items():
        key = _read_entry(path, name, raw)
        if key.digest in found:
            raise ConfigError(f"{path}: {found[key.digest].name} and {name} have the same key.")
        found[key.digest] = key
    if any(isinstance(raw, dict) and raw.get("key") is not None for raw in file.keys.values()):
        _warn_if_others_can_read(path)
    return tuple(found.values())


def _read_entry(path: Path, name: str, raw: Any) -> Key:
    where = f"{path}: keys.{name}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{path}: {str(name)[:80]!r} is no name for a key.",
            hint="Use up to 64 letters, digits, dots, dashes, underscores and @.",
        )
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} is not a mapping.", hint="Write `key:` and its limits below the name.")
    entry = from_mapping(_Entry, raw, source=str(path), prefix=f"keys.{name}.")
    if (entry.key is None) == (entry.key_sha256 is None):
        raise ConfigError(f"{where} must have either key or key_sha256.")
    try:
        limits = Limits(
            requests_per_minute=entry.requests_per_minute,
            tokens_per_minute=entry.tokens_per_minute,
            concurrency=entry.concurrency,
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error
    return Key(name, _digest(where, entry), limits, entry.load_adapters)


def _digest(where: str, entry: _Entry) -> bytes:
    if entry.key_sha256 is not None:
        if not _SHA256.fullmatch(entry.key_sha256):
            raise ConfigError(
                f"{where}.key_sha256 is not a SHA-256.",
                hint="It has 64 hexadecimal digits: printf %s KEY | sha256sum",
            )
        return bytes.fromhex(entry.key_sha256)
    assert entry.key is not None
    if not is_sound_key(entry.key):
        raise ConfigError(
            f"{where}.key is empty or has characters other than printable ASCII without spaces."
        )
    return hashlib.sha256(entry.key.encode("ascii")).digest()


def _warn_if_others_can_read(path: Path) -> None:
    if os.name != "nt" and stat.S_IMODE(path.stat().st_mode) & 0o044:
        logger.warning("%s holds keys and can be read by other users: chmod 600, or use key_sha256", path)
