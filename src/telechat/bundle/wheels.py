"""The wheels of a bundle: our own, built from the sources, and those it needs, fetched by pip.

pip runs as a process of its own and reads its usual settings, so mirrors and PyTorch's CPU index are chosen
as for any installation. Knows nothing of models.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from telechat.errors import TelechatError, UsageError

CONSTRAINTS = "constraints.txt"
# Read by the build of our wheel (hatch_build.py): leave the compiled kernels out.
PURE_VARIABLE = "TELECHAT_PURE_WHEEL"


def find_source(named: Path | None) -> Path:
    """The checkout to build from: the one named, else the one that this telechat runs from.

    Raises:
        UsageError: there is no checkout.
    """
    folder = named if named is not None else Path(__file__).resolve().parents[3]
    if not (folder / "pyproject.toml").is_file() or not (folder / CONSTRAINTS).is_file():
        raise UsageError(
            f"{folder} is not a checkout of telechat: it has no pyproject.toml and {CONSTRAINTS}.",
            hint="Name one with --source.",
        )
    return folder


def check_platforms(platforms: Sequence[str]) -> None:
    """Refuse platforms of another system.

    pip decides by the machine it runs on which packages a system needs, so it would fetch the wrong ones.

    Raises:
        UsageError: a platform is not one of this system.
    """
    prefixes = {"linux": ("manylinux", "musllinux", "linux"), "darwin": ("macosx",), "win32": ("win",)}
    ours = prefixes.get(sys.platform, ())
    for platform in platforms:
        if not platform.startswith(ours):
            raise UsageError(
                f"A bundle for {platform} cannot be made on {sysconfig.get_platform()}: pip chooses "
                "packages by the system it runs on.",
                hint=f"Make it on that system; here the platform begins with {' or '.join(ours)}.",
            )


def check_extras(source: Path, extras: Sequence[str]) -> None:
    """Refuse extras that the project does not have; pip would only warn.

    Raises:
        UsageError: an unknown name; lists the known ones.
    """
    with (source / "pyproject.toml").open("rb") as file:
        known = tomllib.load(file)["project"].get("optional-dependencies", {})
    for name in extras:
        if name not in known:
            raise UsageError(f"There is no extra {name!r}.", hint=f"Known: {', '.join(known) or 'none'}.")


def remove_unfinished(folder: Path) -> None:
    """Delete wheels that an interrupted run left half written; pip would take them for whole."""
    for path in folder.glob("*.whl"):
        if not zipfile.is_zipfile(path):
            path.unlink()


def build_own_wheel(source: Path, folder: Path, *, pure: bool) -> Path:
    """Build our wheel from a checkout into `folder`, replacing an earlier one.

    Args:
        pure: without compiled kernels, for another machine than this.

    Raises:
        TelechatError: it cannot be built; pip's own words are on stderr.
    """
    for path in folder.glob("telechat-*.whl"):
        path.unlink()
    environment = {**os.environ, PURE_VARIABLE: "1" if pure else ""}
    _pip(["wheel", "--no-deps", "-w", str(folder), str(source)], "build telechat's wheel", environment)
    (wheel,) = folder.glob("telechat-*.whl")
    return wheel


def download(
    wheel: Path,
    folder: Path,
    *,
    constraints: Path,
    extras: Sequence[str],
    platforms: Sequence[str],
    python_version: str | None,
) -> None:
    """Fetch everything that `wheel` needs into `folder`; what is there already is kept.

    Raises:
        TelechatError: pip failed; its own words are on stderr.
    """
    words = ["download", "-d", str(folder), "-c", str(constraints)]
    if platforms or python_version is not None:
        # Sources cannot be built for another machine or Python.
        words += ["--only-binary", ":all:"]
    for platform in platforms:
        words += ["--platform", platform]
    if python_version is not None:
        words += ["--python-version", python_version]
    target = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    _pip([*words, target], "fetch the wheels", dict(os.environ))


def check_all_wheels(folder: Path) -> None:
    """Refuse source archives: the machine without a network could not build them.

    Raises:
        TelechatError: pip delivered something else than wheels.
    """
    others = sorted(path.name for path in folder.iterdir() if path.suffix != ".whl")
    if others:
        raise TelechatError(
            f"There is no wheel for this machine of {', '.join(others)}.",
            hint="Run pip wheel for it, and put the folder of the result into PIP_FIND_LINKS.",
        )


def _pip(words: list[str], task: str, environment: dict[str, str]) -> None:
    if importlib.util.find_spec("pip") is None:
        raise TelechatError(
            f"{sys.executable} has no pip.", hint="Install it with: python -m ensurepip --upgrade"
        )
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    # pip writes its progress to stdout; ours is for results.
    done = subprocess.run(command, env=environment, stdout=2)
    if done.returncode != 0:
        raise TelechatError(
            f"pip could not {task}; its last lines say why.",
            hint="Run the command again: what is already fetched is kept.",
        )
