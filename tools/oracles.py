"""Run the tests marked `oracle`, in environments of their own.

The `.txt` files in `tests/oracles` name packages too heavy, or too eager to pin others, for the project's own
environment. Each of these environments sees the packages of the project's (torch is not installed twice) and
adds its own, which win.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"


@dataclass(frozen=True)
class Environment:
    """Packages, and the tests that need them.

    Attributes:
        folder: name below `.oracles`.
        requirements: file in `tests/oracles`.
        tests: paths below `tests`.
        free: packages of the project that this environment has in another version.
        alone: install exactly what the file names, and nothing that those packages ask for.
    """

    folder: str
    requirements: str
    tests: tuple[str, ...]
    free: tuple[str, ...] = ()
    alone: bool = False

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return ROOT / ".oracles" / self.folder / "bin" / "python"

    def prepare(self) -> None:
        """Make it, or make it anew where its packages have changed."""
        wanted = (ROOT / "tests" / "oracles" / self.requirements).read_text(encoding="utf-8")
        pins = CONSTRAINTS.read_text(encoding="utf-8").splitlines(keepends=True)
        constraints = "".join(pin for pin in pins if pin.partition("==")[0] not in self.free)
        venv = self.python.parents[1]
        stamp = venv / "requirements.sha256"
        digest = hashlib.sha256((wanted + constraints).encode()).hexdigest()
        if stamp.exists() and stamp.read_text() == digest:
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        (venv / "requirements.txt").write_text(wanted, encoding="utf-8")
        (venv / "constraints.txt").write_text(constraints, encoding="utf-8")
        site = subprocess.run(
            [str(self.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        borrowed = f"{sysconfig.get_path('purelib')}\n{ROOT / 'src'}\n"
        Path(site, "borrowed.pth").write_text(borrowed)
        pip = [str(self.python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        files = ["-c", str(venv / "constraints.txt"), "-r", str(venv / "requirements.txt")]
        subprocess.run([*pip, *(["--no-deps"] if self.alone else []), *files], check=True)
        stamp.write_text(digest)

    def run(self) -> int:
        """Run its tests; returns pytest's exit code."""
        paths = [str(ROOT / "tests" / path) for path in self.tests]
        return subprocess.run([str(self.python), "-m", "pytest", "-m", "oracle", *paths], cwd=ROOT).returncode


ENVIRONMENTS = (
    Environment("venv", "langchain.txt", ("e2e/test_langchain.py", "golden/test_gguf_oracle.py")),
    # Its client of OpenAI's interface wants an older openai than the project is tested with.
    Environment("llamaindex", "llamaindex.txt", ("e2e/test_llamaindex.py",), free=("openai",)),
    Environment("peft", "peft.txt", ("e2e/test_peft.py", "e2e/test_peft_serving.py")),
    Environment("compressed-tensors", "compressed_tensors.txt", ("unit/quant/test_llama_layout.py",)),
    Environment("gptqmodel", "gptqmodel.txt", ("unit/quant/test_gptqmodel.py",), alone=True),
    Environment("trl", "trl.txt", ("unit/train/losses/test_trl.py",)),
    Environment("loggers", "loggers.txt", ("unit/train/test_loggers_oracle.py",)),
    Environment("deepspeed", "deepspeed.txt", ("distributed_deepspeed",)),
)


def main() -> int:
    """Prepare every environment and run its tests; returns the first exit code that is not 0."""
    codes = []
    for environment in ENVIRONMENTS:
        environment.prepare()
        codes.append(environment.run())
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
