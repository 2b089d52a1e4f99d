"""The Dockerfiles, read: pinned bases, a user without rights, options and routes that exist, versions.

Their RUN lines are run in tests/e2e/test_docker_runs.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from starlette.testclient import TestClient
from tests.dockerfiles import FILES, FOLDER, ROOT, Build, Stage, reaches_docker, read_dockerfile
from tests.unit.deploy.command_lines import parse_command

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the images are Linux")
NAMES = [path.suffix[1:] for path in FILES]


def final(path: Path) -> Stage:
    return read_dockerfile(path)[-1]


def value_of(stage: Stage, word: str) -> str:
    (item,) = stage.all(word)
    return item.rest


def variables(stage: Stage) -> dict[str, str]:
    words = [word for item in stage.all("ENV") for word in shlex.split(item.rest)]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def test_three_kinds_of_machine() -> None:
    assert NAMES == ["ascend", "cpu", "cuda"]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_bases_are_pinned_by_tag(path: Path) -> None:
    for stage in read_dockerfile(path):
        _, colon, tag = stage.base.rpartition(":")
        assert colon and re.search(r"\d+\.\d+\.\d+", tag), stage.base


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_service_runs_without_rights(path: Path) -> None:
    stage = final(path)
    user = value_of(stage, "USER")
    words = [item.word for item in stage.instructions]
    assert user == "telechat" and words.index("USER") < words.index("ENTRYPOINT")
    made = [item.rest for item in stage.all("RUN") if "useradd" in item.rest]
    assert len(made) == 1 and "--uid 10001" in made[0] and made[0].endswith(user)
    # Nothing of the image belongs to the user but the home folder.
    assert "chown" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_command_is_one_of_ours(path: Path) -> None:
    stage = final(path)
    words = [*json.loads(value_of(stage, "ENTRYPOINT")), *json.loads(value_of(stage, "CMD"))]
    args = parse_command(words[words.index("telechat") :])
    assert args.host == "0.0.0.0" and str(args.port) in value_of(stage, "EXPOSE").split()
    assert urlsplit(variables(stage)["TELECHAT_HEALTH_URL"]).port == args.port


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_packages_have_a_layer_before_the_sources(path: Path) -> None:
    """A changed source file must not install PyTorch again."""
    stage = read_dockerfile(path)[0]
    texts = [item.rest for item in stage.instructions if item.word in ("COPY", "RUN")]
    installs = next(index for index, text in enumerate(texts) if "-r requirements.txt" in text)
    sources = next(index for index, text in enumerate(texts) if text.startswith("src "))
    own = next(index for index, text in enumerate(texts) if text == "pip install --no-deps .")
    assert installs < sources < own


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_what_is_copied_is_in_the_context(path: Path) -> None:
    for stage in read_dockerfile(path):
        for item in stage.all("COPY"):
            if not any(flag.startswith("--from") for flag in item.flags):
                *sources, _ = item.rest.split()
                assert all((ROOT / source).exists() and reaches_docker(source) for source in sources)
    assert not reaches_docker(".git") and not reaches_docker(".venv") and not reaches_docker("tests")


class Health(BaseHTTPRequestHandler):
    """Answers /health with 200 and anything else with 503."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def health_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_health_check(path: Path, health_url: str, client: TestClient) -> None:
    stage = final(path)
    assert client.get(urlsplit(variables(stage)["TELECHAT_HEALTH_URL"]).path).status_code == 200
    (program, *words) = json.loads(value_of(stage, "HEALTHCHECK").removeprefix("CMD "))
    assert program == "python"
    codes = []
    for url in (f"{health_url}/health", f"{health_url}/ready", "http://127.0.0.1:9/health"):
        environment = {"TELECHAT_HEALTH_URL": url, "no_proxy": "*"}
        done = subprocess.run([sys.executable, *words], env=environment, stderr=subprocess.DEVNULL)
        codes.append(done.returncode != 0)
    assert codes == [False, True, True]


def test_versions_on_paper() -> None:
    """torch_npu is not here to install: its version is torch's, and one that the project accepts."""
    stage = final(FOLDER / "Dockerfile.ascend")
    given = dict(item.rest.partition("=")[::2] for item in stage.all("ARG"))
    torch_version, npu_version = Version(given["TORCH_VERSION"]), Version(given["TORCH_NPU_VERSION"])
    assert torch_version.release == npu_version.release
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (wanted,) = re.findall(r'^    "(torch>=[^"]*)",', pyproject, re.MULTILINE)
    assert torch_version in Requirement(wanted).specifier
    (tested,) = re.findall(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert Version(tested) in Requirement(wanted).specifier
    # CANN's image has the Python that the project and that torch_npu have wheels for.
    (python,) = re.findall(r"py(\d+\.\d+)$", stage.base)
    (floor,) = re.findall(r'^requires-python = ">=([\d.]+)"', pyproject, re.MULTILINE)
    assert Version(python) >= Version(floor)


def test_the_requirements_script(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    command = [sys.executable, str(FOLDER / "requirements.py"), "gguf"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    names = [Requirement(line).name for line in done.stdout.splitlines()]
    assert names[0] == "torch" and names[-1] == "llama-cpp-python" and "fastapi" in names


def test_the_entrypoint_becomes_its_command(tmp_path: Path) -> None:
    script = FOLDER / "ascend-entrypoint.sh"
    done = subprocess.run(
        ["bash", str(script), "sh", "-c", 'echo "$LD_LIBRARY_PATH" "$1"', "-", "two words"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": "/before"},
    )
    assert "/usr/local/Ascend/driver/lib64" in done.stdout and "/before two words" in done.stdout
    assert os.access(script, os.X_OK)


def test_a_run_line_that_fails_is_noticed(tmp_path: Path) -> None:
    """The runner itself: arguments reach the line, a failure and an unknown package end the build."""
    path = tmp_path / "Dockerfile.x"
    path.write_text("FROM x:1\nWORKDIR /w\nARG NAME=file\nRUN touch $NAME\nRUN false\n")
    build = Build(tmp_path / "build", {"NAME": "other"})
    with pytest.raises(AssertionError, match="RUN false"):
        build.take(read_dockerfile(path))
    assert (tmp_path / "build" / "w" / "other").exists() and build.log == ["touch $NAME"]
