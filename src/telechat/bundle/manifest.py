"""The sums of a bundle: one SHA-256 for every file, written and checked.

The file has the form of coreutils, so that `sha256sum -c SHA256SUMS` checks it too, before anything is
installed. Knows nothing of what the files are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from telechat.errors import TelechatError

MANIFEST = "SHA256SUMS"
# Told how many bytes were read since the last call.
Advance = Callable[[int], None]
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Findings:
    """What is wrong with a bundle, as paths relative to it, sorted; nothing where it is sound.

    Attributes:
        missing: listed, but not there.
        altered: there, with another content than listed.
        extra: there, but not listed.
        num_files: how many are listed.
    """

    missing: tuple[str, ...]
    altered: tuple[str, ...]
    extra: tuple[str, ...]
    num_files: int

    @property
    def is_sound(self) -> bool:
        """Whether every file is as it was made, and there are no others."""
        return not (self.missing or self.altered or self.extra)


def file_sha256(path: Path, advance: Advance) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def files_below(folder: Path) -> list[str]:
    """Every file of a bundle but the manifest, as relative paths with slashes, sorted."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(path for path in paths if path != MANIFEST)


def write_manifest(folder: Path, sums: Mapping[str, str]) -> None:
    """Write the sums of a bundle, relative path -> SHA-256."""
    lines = [f"{sums[path]}  {path}\n" for path in sorted(sums)]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8", newline="\n")


def read_manifest(folder: Path) -> dict[str, str]:
    """The sums of a bundle, relative path -> SHA-256.

    Raises:
        TelechatError: there is none, or it is not a list of sums and paths below the folder.
    """
    path = folder / MANIFEST
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise TelechatError(
            f"{folder} has no {MANIFEST}.", hint="Name a folder that `telechat bundle make` has finished."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise TelechatError(f"{path} cannot be read: {error}.") from error
    sums = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        name = PurePosixPath(match[2]) if match else PurePosixPath()
        # A manifest must not make us read files elsewhere.
        if match is None or name.is_absolute() or ".." in name.parts:
            raise TelechatError(
                f"{path} line {number} is not a sum and a path below the folder: {line[:100]!r}.",
                hint="Copy the bundle again.",
            )
        sums[match[2]] = match[1]
    return sums


def verify(folder: Path, start: Callable[[int], Advance]) -> Findings:
    """Compare every file of a bundle with its sum.

    Args:
        folder: the bundle.
        start: given the bytes to read, returns what is told of progress.

    Raises:
        TelechatError: the manifest is missing or malformed.
    """
    sums = read_manifest(folder)
    present = files_below(folder)
    there = [name for name in sums if (folder / name).is_file()]
    advance = start(sum((folder / name).stat().st_size for name in there))
    altered = [name for name in there if file_sha256(folder / name, advance) != sums[name]]
    return Findings(
        missing=tuple(sorted(sums.keys() - set(there))),
        altered=tuple(sorted(altered)),
        extra=tuple(sorted(set(present) - sums.keys())),
        num_files=len(sums),
    )
