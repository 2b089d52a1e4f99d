"""One file from an address to a path: resumed where it broke off, checked against its hash, never half there.

The content grows in `<name>.part` and is renamed when size and hash are right. A part left by an earlier run
is continued with a Range request. Knows nothing of models or hubs.
"""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import BinaryIO

import httpx

from telechat.checkpoint.hub_api import Hub, HubFile
from telechat.errors import HubError

log = logging.getLogger(__name__)

ATTEMPTS = 5
PAUSE_SECONDS = 1.0  # before the second attempt; doubled each time
_CHUNK_BYTES = 1 << 20
_REPORT_SECONDS = 5.0
_TRANSIENT = (408, 429, 500, 502, 503, 504)


def fetch(
    client: httpx.Client,
    hub: Hub,
    model_id: str,
    file: HubFile,
    target: Path,
) -> None:
    """Download `file` to `target`.

    A connection that breaks and a hub that is overloaded are tried again, each time from where it broke off.

    Raises:
        HubError: refused, unreachable after all attempts, or a content that is not what the hub announced.
    """
    part = target.with_name(target.name + ".part")
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        resumed = part.exists()
        try:
            _continue(client, hub, model_id, file, part)
        except httpx.TransportError as error:
            if attempt + 1 == ATTEMPTS:
                raise hub.unreachable(error) from error
            log.warning("%s: connection lost (%s); trying again", file.path, error or type(error).__name__)
            continue
        problem = _mismatch(part, file)
        if problem is None:
            part.replace(target)
            return
        part.unlink()
        # The remains of another revision explain a mismatch once; a fresh download that differs does not.
        if not resumed:
            raise HubError(
                f"{file.path} of {model_id} is damaged: {problem}.",
                hint="Run the command again; if it persists, "
                f"the copy on {hub.endpoint} is damaged: use another hub or mirror.",
            )
        log.warning("%s: %s after resuming; starting over", file.path, problem)
    raise HubError(f"{file.path} of {model_id} could not be downloaded.", hint="Run the command again.")


def _continue(client: httpx.Client, hub: Hub, model_id: str, file: HubFile, part: Path) -> None:
    """Append what is missing to `part`; returns when the server has sent all it has to send."""
    have = part.stat().st_size if part.exists() else 0
    if have > file.num_bytes:
        part.unlink()
        have = 0
    if have == file.num_bytes and part.exists():
        return
    # Compressed on the way, a file could not be continued by counting bytes.
    headers = {**hub.headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with client.stream("GET", file.url, headers=headers) as response:
        if response.status_code in _TRANSIENT:
            raise httpx.ReadError(f"HTTP {response.status_code}")
        hub.raise_for_status(response, model_id)
        # 200 instead of 206: the server ignored the range and sends everything.
        is_continued = response.status_code == 206
        with part.open("ab" if is_continued else "wb") as out:
            _copy(response, out, file, have if is_continued else 0)


def _copy(response: httpx.Response, out: BinaryIO, file: HubFile, have: int) -> None:
    """Write what comes, `have` bytes being there already, and say how far it is."""
    started = reported = time.monotonic()
    begin = have
    for chunk in response.iter_bytes():
        out.write(chunk)
        have += len(chunk)
        now = time.monotonic()
        if now - reported >= _REPORT_SECONDS:
            reported = now
            rate = (have - begin) / (now - started) / 1e6
            log.info("%s: %.1f of %.1f MB, %.1f MB/s", file.path, have / 1e6, file.num_bytes / 1e6, rate)


def _mismatch(part: Path, file: HubFile) -> str | None:
    """How the content differs from what was announced, or None."""
    num_bytes = part.stat().st_size if part.exists() else 0
    if num_bytes != file.num_bytes:
        return f"it has {num_bytes} bytes, the hub announced {file.num_bytes}"
    if file.sha256 is not None:
        algorithm, expected, start = hashlib.sha256(), file.sha256, b""
    elif file.git_sha1 is not None:
        # A git blob's id is the SHA-1 of a small header and the content.
        algorithm, expected, start = hashlib.sha1(), file.git_sha1, b"blob %d\0" % num_bytes
    else:
        return None
    algorithm.update(start)
    with part.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            algorithm.update(chunk)
    found = algorithm.hexdigest()
    return (
        None if found == expected.lower() else f"its {algorithm.name} is {found[:12]}…, not {expected[:12]}…"
    )
