#!/usr/bin/env python3
"""Set up telechat beside this file and start it: the HTTP API on port 8070 and the chat page on port 8501.

Uses the standard library only. Makes `.venv`, installs this checkout with the tested versions of
`constraints.txt`, and hands every argument over to `telechat deploy` (see `python deploy.py --help`). When
nothing has changed since the last time it starts at once. It knows nothing about models.

`python deploy.py --setup-only [--extra NAME ...]` stops after the installation; `make` uses that.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys

MIN_PYTHON = (3, 11)
ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.abspath(os.environ.get("TELECHAT_VENV") or os.path.join(ROOT, ".venv"))
STAMP = os.path.join(VENV, "telechat-setup.json")
WINDOWS = os.name == "nt"


class SetupError(Exception):
    """The environment cannot be made; the text says why and what to do."""


def main(arguments):
    """Prepare the environment, then run `telechat deploy` with `arguments`; returns the exit code."""
    try:
        if sys.version_info < MIN_PYTHON:
            return run_with_newer_python(arguments)
        if arguments[:1] == ["--setup-only"]:
            prepare(parse_extras(arguments[1:]))
            return 0
        python = prepare([])
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    command = [python, "-m", "telechat", "deploy", *with_shipped_config(arguments)]
    if WINDOWS:
        # Windows has no exec that keeps the console; the child sees Ctrl-C itself, so only wait for it.
        child = subprocess.Popen(command)
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue
    sys.stdout.flush()
    os.execv(python, command)


def with_shipped_config(arguments):
    """Add the settings file that lies beside this script, unless one is named."""
    named = any(word == "--config" or word.startswith("--config=") for word in arguments)
    return arguments if named else ["--config", os.path.join(ROOT, "deploy_config.yaml"), *arguments]


def parse_extras(words):
    """`--extra dev --extra hf` as ["dev", "hf"]."""
    if len(words) % 2 or any(word != "--extra" for word in words[::2]):
        raise SetupError(f"--setup-only takes `--extra NAME`, as often as needed; got: {' '.join(words)}")
    return sorted(set(words[1::2]))


def run_with_newer_python(arguments):
    """Start again under a Python that is new enough, where one is installed."""
    for minor in range(13, MIN_PYTHON[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        # A version manager puts names on the path that lead nowhere.
        if found and runs(found):
            return subprocess.call([found, os.path.abspath(__file__), *arguments])
    raise SetupError(
        f"telechat needs Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer; this is {sys.version.split()[0]}. "
        "Install it from https://www.python.org/downloads/ and run this script with it."
    )


def prepare(extras):
    """Make or reuse the environment with this checkout and `extras` installed; returns its Python."""
    python = os.path.join(VENV, "Scripts", "python.exe") if WINDOWS else os.path.join(VENV, "bin", "python")
    extras = sorted({*extras, *([] if has_compiler() else ["compiler"])})
    wanted = fingerprint()
    stamp = read_stamp()
    installed = set(stamp.get("extras", []))
    if os.path.exists(python) and stamp.get("fingerprint") == wanted and set(extras) <= installed:
        return python
    if runs(python):
        extras = sorted(set(extras) | installed)
    else:
        make_venv()
    if not runs(python, "-m", "pip", "--version") and not runs(python, "-m", "ensurepip", "--upgrade"):
        raise SetupError(f"{VENV} has no pip and ensurepip failed. Delete that folder and run this again.")
    target = f"{ROOT}[{','.join(extras)}]" if extras else ROOT
    print(f"Installing telechat and what it needs into {VENV} (once; some minutes) ...", file=sys.stderr)
    sys.stderr.flush()
    install = ["-m", "pip", "install", "--disable-pip-version-check", "-c", constraints_file(), "-e", target]
    # A checkout compiles its kernels when they are first used: this build needs no compiler of its own.
    environment = dict(os.environ, TELECHAT_PURE_WHEEL="1")
    # pip writes its progress to stdout; ours is for the addresses that `telechat deploy` prints.
    if subprocess.call([python, *install], stdout=2, env=environment) != 0:
        raise SetupError(
            "pip could not install telechat; its last lines say why. When the network is the cause, run this "
            "again: what is already downloaded is kept."
        )
    with open(STAMP, "w", encoding="utf-8") as file:
        json.dump({"fingerprint": wanted, "extras": extras}, file)
    return python


def has_compiler():
    """Whether the CPU kernels compile with what is here; elsewhere the extra `compiler` brings clang."""
    return WINDOWS or bool(os.environ.get("CC")) or any(map(shutil.which, ("cc", "gcc", "clang")))


def make_venv():
    """Create the environment, replacing a broken one."""
    print(f"Creating {VENV} ...", file=sys.stderr)
    sys.stderr.flush()
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", VENV],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if made.returncode == 0:
        return
    if "ensurepip" in made.stdout or "No module named venv" in made.stdout:
        raise SetupError(
            "this Python lacks the venv module. On Debian and Ubuntu: "
            f"sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        )
    lines = [line for line in made.stdout.splitlines() if line.strip()] or ["no message"]
    raise SetupError(f"{VENV} cannot be created: {lines[-1]}")


def constraints_file():
    """The file of tested versions, as pip wants it."""
    return os.path.join(ROOT, "constraints.txt")


def fingerprint():
    """A digest of everything that decides what is installed, and of where."""
    digest = hashlib.sha256(ROOT.encode("utf-8", "surrogateescape"))
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def read_stamp():
    """What the last installation recorded; empty when there is none or it is damaged."""
    try:
        with open(STAMP, encoding="utf-8") as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def runs(python, *words):
    """Whether the interpreter at `python` exists and this command of it succeeds."""
    try:
        code = subprocess.call(
            [python, *(words or ("-c", "pass"))], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError:
        return False
    return code == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
