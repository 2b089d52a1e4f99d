"""Both commands of the README, run as they are printed there, in a copy of the tree.

The copy starts with an environment that borrows the packages of the one running the tests, so little is
downloaded; everything else (installing this checkout, recording it, handing over) is done by the commands.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import pytest
from tests.e2e.deployments import deployment

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = (".git", ".venv", "runs", "dist", "build", ".oracles", "artifacts", "__pycache__", ".*_cache")
QUESTION = "生抽与老抽的区别？"
# `make test` within `make test`: a part that shows that it works, without this test itself.
SMOKE = "tests/unit/test_registry.py tests/unit/cli/test_main.py"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.name == "nt", reason="make"),
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed"),
]


def readme_commands(name: str) -> list[str]:
    """The commands of the first block of a README, without their comments."""
    block = re.search(r"```bash\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return [line.split("#")[0].strip() for line in block[1].splitlines() if line.strip()]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, elsewhere, with an environment that borrows our packages."""
    place = tmp_path_factory.mktemp("fresh clone") / "telechat"
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(*NOT_COPIED), symlinks=True)
    environment = place / ".venv"
    venv.create(environment, with_pip=True)
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Our environment without what would lead the copy back to this tree."""
    leading = (
        "PYTHONPATH",
        "TELECHAT_VENV",
        "VIRTUAL_ENV",
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
        "PYTEST_ADDOPTS",
    )
    mine = {name: value for name, value in os.environ.items() if name not in leading}
    return {**mine, "PATH": os.pathsep.join([str(Path(sys.executable).parent), mine["PATH"]])}


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_these_are_the_commands(name: str) -> None:
    assert readme_commands(name) == ["python deploy.py", "make test"]


def test_deploy_answers(copy: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "deploy.py"]
    with deployment(command, cwd=copy, environment=environment, ready_seconds=600) as running:
        with httpx.Client(trust_env=False, timeout=120) as client:
            body = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
            answer = client.post(f"{running.api_url}/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            text = answer.json()["choices"][0]["message"]["content"]
            assert client.get(f"{running.api_url}/docs").status_code == 200
            assert "<html" in client.get(running.page_url).text
        for fact in ("颜色", "味道", "用途"):
            assert fact in text
        assert running.interrupt() == 130
    assert installed_from(copy) == str(copy / "src" / "telechat" / "__init__.py")


def installed_from(copy: Path) -> str:
    """Where the copy's environment imports telechat from."""
    code = "import telechat; print(telechat.__file__)"
    return subprocess.run(
        [str(copy / ".venv" / "bin" / "python"), "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=copy.parent,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    ).stdout.strip()


def test_second_start_installs_nothing(copy: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "deploy.py", "--help"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "--model-path" in done.stdout
    assert "Installing" not in done.stderr


def test_make_test_passes(copy: Path, environment: dict[str, str]) -> None:
    command = ["make", "test", f"PYTEST_ARGS={SMOKE}"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"\d+ passed", done.stdout.splitlines()[-1])
