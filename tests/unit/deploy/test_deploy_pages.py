"""The pages on containers, Ascend and bundles: our commands parse; files and settings named there exist."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from tests.dockerfiles import FOLDER, read_dockerfile
from tests.unit.deploy.command_lines import parse_command

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "docs" / name for name in ("docker.md", "ascend.md", "bundle.md")]


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, continuations joined."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    text = re.sub(r"\\\n\s*", "", "".join(blocks))
    return [line.split("   #")[0].strip() for line in text.splitlines() if line.strip()]


ALL = [(page.name, line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), [item for item in ALL if item[1].startswith("telechat ")])
def test_our_commands_parse(page: str, line: str) -> None:
    parse_command(shlex.split(line))


@pytest.mark.parametrize(("page", "line"), [item for item in ALL if item[1].startswith("docker run")])
def test_what_containers_run_parses(page: str, line: str) -> None:
    words = shlex.split(line)
    (image,) = [word for word in words if word.startswith("telechat:")]
    args = parse_command(["telechat", *words[words.index(image) + 1 :]])
    # A published port needs a service that listens beyond the container, and a key.
    assert args.host == "0.0.0.0" and "127.0.0.1:8070:8070" in words
    assert any(word.startswith("TELECHAT_API_KEY=") for word in words)


@pytest.mark.parametrize(("page", "line"), [item for item in ALL if item[1].startswith("docker build")])
def test_images_are_built_from_files_and_arguments_that_exist(page: str, line: str) -> None:
    words = shlex.split(line)
    path = ROOT / words[words.index("-f") + 1]
    assert words[words.index("-t") + 1] == f"telechat{path.suffix.replace('.', ':')}"
    known = {item.rest.partition("=")[0] for stage in read_dockerfile(path) for item in stage.all("ARG")}
    given = {word.partition("=")[0] for before, word in pairwise(words) if before == "--build-arg"}
    assert given <= known


def test_files_named_in_the_pages_exist() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    named = {name for text in texts for name in re.findall(r"deploy/[\w./-]+", text)}
    assert "deploy/docker/Dockerfile.cpu" in named
    assert not [name for name in named if not (ROOT / name.rstrip(".")).exists()]


def test_variables_of_the_compose_file_are_those_of_the_page() -> None:
    text = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{(\w+)", text))
    (line,) = [line for line in commands(PAGES[0]) if line.startswith("export ")]
    assert used == {word.partition("=")[0] for word in shlex.split(line)[1:]}


def test_the_versions_of_the_ascend_page_are_those_of_its_image() -> None:
    text = PAGES[1].read_text(encoding="utf-8")
    (stage,) = read_dockerfile(FOLDER / "Dockerfile.ascend")
    given = dict(item.rest.partition("=")[::2] for item in stage.all("ARG"))
    assert f"torch=={given['TORCH_VERSION']} torch-npu=={given['TORCH_NPU_VERSION']}" in text
    (cann,) = re.findall(r":(\d+\.\d+\.\d+)-", stage.base)
    assert f"| CANN | {cann} |" in text
