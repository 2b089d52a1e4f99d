"""Run the tests marked `oracle` in an environment of their own.

`tests/oracles/requirements.txt` names packages too heavy, or too eager to pin others, for the project's own
environment. This one sees the packages of the project's (torch is not installed twice) and adds those.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".oracles" / "venv"
REQUIREMENTS = ROOT / "tests" / "oracles" / "requirements.txt"


def main() -> int:
    """Prepare the environment and run pytest in it; returns pytest's exit code."""
    python = VENV / "bin" / "python"
    stamp = VENV / "requirements.sha256"
    constraints = ROOT / "constraints.txt"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + constraints.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        site = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        borrowed = f"{sysconfig.get_path('purelib')}\n{ROOT / 'src'}\n"
        Path(site, "borrowed.pth").write_text(borrowed)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(constraints), "-r", str(REQUIREMENTS)], check=True)
        stamp.write_text(wanted)
    command = [str(python), "-m", "pytest", "-m", "oracle", str(ROOT / "tests" / "oracles")]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
