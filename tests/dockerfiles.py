"""Dockerfiles read and their RUN lines run without Docker, each file in an empty folder of its own.

`COPY` copies into that folder, where `.dockerignore` lets it; absolute paths of the image (`WORKDIR`, values
of `ENV`) become paths below the folder; a RUN line is then given to `/bin/sh` as it stands, with nothing in
the environment but what the Dockerfile sets and how pip reaches packages here. Commands that change
the system (`apt-get`, `useradd`) are met by stand-ins that note their words, look up the packages' names
where apt is there, and change nothing.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "deploy" / "docker"
FILES = tuple(sorted(FOLDER.glob("Dockerfile.*")))
# How pip and curl reach anything on this machine.
PASSED_ON = re.compile(r"PIP_.*|SSL_CERT_.*|REQUESTS_CA_BUNDLE|(https?|no|all)_proxy", re.IGNORECASE)


@dataclass(frozen=True)
class Instruction:
    """One line of a Dockerfile, continuations joined: its word, its `--flags`, and the rest as written."""

    word: str
    flags: tuple[str, ...]
    rest: str


@dataclass(frozen=True)
class Stage:
    """What stands between a FROM and the next."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def all(self, word: str) -> list[Instruction]:
        """The instructions with this word, in order."""
        return [item for item in self.instructions if item.word == word]


def read_dockerfile(path: Path) -> list[Stage]:
    """The stages of a Dockerfile."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        flags = []
        while rest.startswith("--"):
            flag, _, rest = rest.partition(" ")
            flags.append(flag)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name, ()))
            continue
        last = stages[-1]
        made = (*last.instructions, Instruction(word, tuple(flags), rest))
        stages[-1] = Stage(last.base, last.name, made)
    return stages


def reaches_docker(source: str) -> bool:
    """Whether `.dockerignore` leaves a path of the checkout to COPY."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if source == pattern or source.startswith(f"{pattern}/") or fnmatch.fnmatch(source, pattern):
            kept = line.startswith("!")
    return kept


@dataclass
class Build:
    """One Dockerfile's steps, taken in `folder`.

    Attributes:
        folder: empty when the build begins; holds what would be the image's own paths.
        arguments: what `--build-arg` would give.
        not_run: RUN lines that contain this text are skipped and noted in `skipped`.
        only_resolve: in RUN lines that contain this text, pip only works out what it would install.
        log: RUN lines that were run.
    """

    folder: Path
    arguments: dict[str, str]
    not_run: str | None = None
    only_resolve: str | None = None
    log: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tools = self.folder / "tools"
        self.tools.mkdir(parents=True)
        self.home = self.folder / "home"
        self.home.mkdir()
        # A script, not a link: an interpreter behind a link may take the link's place for its home.
        write_script(self.tools / "python", f'exec "{Path(sys.executable).resolve()}" "$@"')
        write_system_stand_ins(self.tools, self.folder / "system.log")
        self.work = self.folder
        # Of the build's own; whatever else is set on this machine does not reach it.
        self.environment = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
        self.environment |= {"PATH": f"{self.tools}:/usr/local/bin:/usr/bin:/bin", "HOME": str(self.home)}

    def place(self, path: str) -> Path:
        """Where a path of the image is in this build."""
        return self.folder / path.lstrip("/") if path.startswith("/") else self.work / path

    def take(self, stages: list[Stage]) -> None:
        """Every instruction of every stage, in order; the stages share the folder."""
        for stage in stages:
            self.work = self.folder
            for item in stage.instructions:
                step = getattr(self, f"_{item.word.lower()}", None)
                if step is not None:
                    step(item)

    def _workdir(self, item: Instruction) -> None:
        self.work = self.place(item.rest)
        self.work.mkdir(parents=True, exist_ok=True)

    def _arg(self, item: Instruction) -> None:
        name, equals, default = item.rest.partition("=")
        if name in self.arguments or equals:
            self.environment[name] = self.arguments.get(name, default)

    def _env(self, item: Instruction) -> None:
        for word in shlex.split(item.rest):
            name, _, value = word.partition("=")
            value = re.sub(r"\$\{?(\w+)\}?", lambda match: self.environment.get(match[1], ""), value)
            is_ours = value.startswith("/opt/")
            self.environment[name] = str(self.folder) + value if is_ours else value

    def _copy(self, item: Instruction) -> None:
        *sources, target = item.rest.split()
        if any(flag.startswith("--from=") for flag in item.flags):
            (source,) = sources
            assert self.place(source).exists() and source == target, item.rest
            return
        for source in sources:
            assert reaches_docker(source), f"{source} is not in the context (.dockerignore)"
            place = self.place(target)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
                continue
            place = place / Path(source).name if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)

    def _run(self, item: Instruction) -> None:
        if self.not_run is not None and self.not_run in item.rest:
            self.skipped.append(item.rest)
            return
        stops = self.only_resolve is not None and self.only_resolve in item.rest
        environment = {**self.environment, **({"PIP_DRY_RUN": "1"} if stops else {})}
        done = subprocess.run(
            ["/bin/sh", "-c", item.rest], cwd=self.work, env=environment, capture_output=True, text=True
        )
        said = (done.stdout + done.stderr)[-3000:]
        assert done.returncode == 0, f"RUN {item.rest}\nfailed with {done.returncode}:\n{said}"
        self.log.append(item.rest)


def write_script(path: Path, line: str) -> None:
    """A shell script of one line that can be run."""
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


def write_system_stand_ins(folder: Path, log: Path) -> None:
    """Commands that would change this machine: their words are noted, and whether they could work is checked.

    Of `apt-get install`, the names of packages are looked up where apt is there.
    """
    for name in ("useradd", "groupadd", "apt-get"):
        write_script(folder / name, f'echo {name} "$@" >> "{log}"')
    if shutil.which("apt-cache"):
        known = (
            'case "$word" in -*|install|update) ;; *) apt-cache show "$word" > /dev/null || exit 100;; esac'
        )
        line = f'echo apt-get "$@" >> "{log}"; for word in "$@"; do {known}; done'
        write_script(folder / "apt-get", line)
