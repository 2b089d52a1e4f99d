"""Making a bundle: wheels, a model, sums and an installer in one folder.

Everything is gathered in `OUT.partial`, which becomes `OUT` when it is whole. A run that was interrupted goes
on where it stopped, as long as it is asked for the same. Knows nothing of how a model is run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from telechat import __version__
from telechat.bundle import scripts, wheels
from telechat.bundle.manifest import Advance, file_sha256, files_below, write_manifest
from telechat.checkpoint import resolve_model
from telechat.checkpoint.folder import find_weights
from telechat.checkpoint.hub import DEMO, MARKER
from telechat.errors import TelechatError, UsageError

log = logging.getLogger(__name__)

RECORD = "bundle.json"
# What the wheels take at least, PyTorch's CPU build among them; its CUDA build takes several times as much.
WHEELS_BYTES = 400_000_000
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BundleSettings:
    """What a bundle is to hold.

    Attributes:
        model: a folder, a hub id, or `demo`, which needs no files of its own.
        extras: extras of telechat to install.
        platforms: pip's names of the platform it is for, `manylinux_2_28_aarch64`; none is this machine's.
        python_version: its Python, as in 3.12; None is the one running.
    """

    model: str
    extras: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    python_version: str | None = None

    @property
    def python(self) -> str:
        """The version of Python that the bundle is for, as in 3.11."""
        return self.python_version or f"{sys.version_info[0]}.{sys.version_info[1]}"

    @property
    def machine(self) -> str:
        """The platform that the bundle is for."""
        return ", ".join(self.platforms) or sysconfig.get_platform()


def make_bundle(
    out: Path, settings: BundleSettings, *, source: Path | None, start: Callable[[int], Advance]
) -> int:
    """Make the bundle `out`; returns its size in bytes.

    Args:
        out: a folder that does not exist yet.
        settings: what goes into it.
        source: the checkout to build our wheel from; None is the one that this telechat runs from.
        start: given the bytes of the model to read, returns what is told of progress.

    Raises:
        UsageError: `out` exists, a platform of another system, an unknown extra, or no checkout.
        TelechatError: the model or a wheel cannot be had, or the disk is too small.
    """
    if out.exists():
        raise UsageError(f"{out} exists.", hint="Name a new folder, or delete that one.")
    partial = out.with_name(f"{out.name}.partial")
    wheels.check_platforms(settings.platforms)
    checkout = wheels.find_source(source)
    wheels.check_extras(checkout, settings.extras)
    files = [] if settings.model == DEMO else model_files(resolve_model(settings.model))
    target = partial / "models" / _folder_name(settings.model)
    _open_partial(partial, settings)
    folder = partial / "wheels"
    folder.mkdir(exist_ok=True)
    needed = _missing_bytes(files, target)
    check_space(partial, needed + (0 if any(folder.glob("torch-*.whl")) else WHEELS_BYTES))
    gather_wheels(folder, checkout, settings)
    check_space(partial, needed)
    sums = copy_model(files, target, start) if files else {}
    _write_texts(partial, settings, target.name if files else None)
    shutil.copy(checkout / wheels.CONSTRAINTS, partial / wheels.CONSTRAINTS)
    for path in files_below(partial):
        if path not in sums:
            sums[path] = file_sha256(partial / path, lambda count: None)
    write_manifest(partial, sums)
    partial.rename(out)
    return sum((out / path).stat().st_size for path in sums)


def _folder_name(model: str) -> str:
    """What the model's folder in the bundle is called; safe in any shell."""
    path = Path(model).expanduser()
    name = path.resolve().name if path.is_dir() else model.rpartition("/")[2]
    return re.sub(r"[^\w.-]", "_", name)


def _open_partial(partial: Path, settings: BundleSettings) -> None:
    """Make the folder of an unfinished bundle, or go on with it; one for other settings is deleted."""
    wanted = {"telechat": __version__, **asdict(settings), "python": settings.python}
    # As JSON has it: lists, not tuples.
    wanted = json.loads(json.dumps(wanted))
    record = partial / RECORD
    if partial.exists():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if found != wanted:
            log.warning("%s was begun for something else; starting over", partial)
            shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def gather_wheels(folder: Path, checkout: Path, settings: BundleSettings) -> None:
    """Build our wheel and fetch what it needs."""
    wheels.remove_unfinished(folder)
    own = wheels.build_own_wheel(checkout, folder, pure=bool(settings.platforms))
    wheels.download(
        own,
        folder,
        constraints=checkout / wheels.CONSTRAINTS,
        extras=settings.extras,
        platforms=settings.platforms,
        python_version=settings.python_version,
    )
    wheels.check_all_wheels(folder)


def model_files(model: Path) -> list[Path]:
    """The files of a model folder that a bundle holds: its weights, and all else but code and leftovers.

    Raises:
        CheckpointError: the folder holds no weights, or lacks some of them.
    """
    weights = find_weights(model).files
    others = [
        path
        for path in sorted(model.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and path.name != MARKER
        and path.suffix not in (*_WEIGHT_SUFFIXES, ".py", ".part")
    ]
    return [*others, *weights]


def _missing_bytes(files: list[Path], target: Path) -> int:
    """How many bytes of the model are still to be copied."""
    return sum(path.stat().st_size for path in files if not _is_copied(path, target / path.name))


def _is_copied(path: Path, target: Path) -> bool:
    return target.is_file() and target.stat().st_size == path.stat().st_size


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what cannot be finished.

    Raises:
        TelechatError: less than `needed` bytes are free where `folder` is.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TelechatError(
            f"The bundle needs {needed / 1e9:.1f} GB more; {folder.parent} has {free / 1e9:.1f} GB free.",
            hint="Make room, or name a folder on a larger disk; then run the command again.",
        )


def copy_model(files: list[Path], target: Path, start: Callable[[int], Advance]) -> dict[str, str]:
    """Copy a model's files; returns path within the bundle -> SHA-256 of what was read."""
    target.mkdir(parents=True, exist_ok=True)
    advance = start(sum(path.stat().st_size for path in files))
    sums = {}
    for path in files:
        copy = target / path.name
        sums[f"models/{target.name}/{path.name}"] = _kept(path, copy, advance) or _copy(path, copy, advance)
    return sums


def _kept(path: Path, copy: Path, advance: Advance) -> str | None:
    """The SHA-256 of a file that an earlier run has copied; None where there is no equal copy."""
    if not _is_copied(path, copy):
        return None
    digest = file_sha256(copy, lambda count: None)
    if digest != file_sha256(path, lambda count: None):
        return None
    advance(path.stat().st_size)
    return digest


def _copy(path: Path, target: Path, advance: Advance) -> str:
    """Copy one file under another name first, so that it is never half there; returns its SHA-256."""
    digest = hashlib.sha256()
    part = target.with_name(f"{target.name}.part")
    with path.open("rb") as source, part.open("wb") as copy:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            copy.write(chunk)
            advance(len(chunk))
    part.replace(target)
    return digest.hexdigest()


def _write_texts(partial: Path, settings: BundleSettings, model: str | None) -> None:
    texts = {
        "install.sh": scripts.INSTALL_SH,
        "install.bat": scripts.INSTALL_BAT,
        "README.txt": scripts.README,
    }
    for name, text in texts.items():
        filled = scripts.fill(
            text, extras=settings.extras, model=model, python=settings.python, machine=settings.machine
        )
        newline = "\r\n" if name.endswith(".bat") else "\n"
        (partial / name).write_text(filled, encoding="utf-8", newline=newline)
    (partial / "install.sh").chmod(0o755)
