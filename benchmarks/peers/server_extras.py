"""Puts what llama-cpp-python's server needs into the peers' environment, which must be built.

python -m benchmarks.peers.server_extras
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.peers.build import FOLDER, is_built, peer_python

REQUIREMENTS = FOLDER / "server_requirements.txt"


def obstacle() -> str | None:
    """Why llama-cpp-python's server cannot be started; None when it can."""
    if not is_built():
        return "llama.cpp is not built here; run: make bench-peers"
    done = subprocess.run(
        [str(peer_python()), "-c", "import llama_cpp.server.app"], capture_output=True, text=True
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        return f"llama.cpp's server lacks packages; run: make bench-peers ({reason})"
    return None


def main() -> int:
    """Install what is missing."""
    if not is_built():
        print("the peers are not built", file=sys.stderr)
        return 1
    if obstacle() is not None:
        pip = [str(peer_python()), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    why = obstacle()
    print(why or "llama.cpp's server can be started")
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
