"""Every RUN line of the Dockerfiles, run in an empty folder with an environment that holds nothing else.

Packages come from where pip of this machine gets them, so the CUDA image's lines run with another build of
PyTorch, and torch_npu's line is not run at all (tests/unit/deploy checks its versions on paper). For CUDA and
Ascend, pip only works out what it would install: the CPU image has shown that it installs.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.dockerfiles import FOLDER, Build, read_dockerfile

pytestmark = [
    pytest.mark.installs,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.name == "nt", reason="the images are Linux"),
]
# Where pip of this machine looks is left as it is; `""` is what an unset --build-arg would be to pip.
HERE = {"PIP_EXTRA_INDEX_URL": os.environ.get("PIP_EXTRA_INDEX_URL", "")}


def build(name: str, folder: Path, *, packages: bool = True, not_run: str | None = None) -> Build:
    """Take every step of an image; without `packages` they are worked out, not installed."""
    stages = read_dockerfile(FOLDER / f"Dockerfile.{name}")
    made = Build(
        folder / "image", HERE, not_run=not_run, only_resolve=None if packages else "-r requirements.txt"
    )
    if not packages:
        # Nor are the kernels compiled: the wheel is then pure Python.
        made.environment["CC"] = "false"
    made.take(stages)
    num_lines = sum(len(stage.all("RUN")) for stage in stages)
    assert len(made.log) + len(made.skipped) == num_lines >= 5
    return made


def test_the_cpu_image_holds_a_working_telechat(tmp_path: Path) -> None:
    made = build("cpu", tmp_path)
    assert not made.skipped
    program = made.place("/opt/telechat/bin/telechat")
    for words in (["--version"], ["doctor", "demo"]):
        # As in the final stage: elsewhere, without the sources and without a compiler.
        environment = {**made.environment, "PATH": f"{program.parent}:{made.tools}", "CC": "false"}
        done = subprocess.run(
            [str(program), *words], cwd=made.home, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert str(made.folder) in done.stdout
    # The kernels were compiled when the image was built.
    assert "level " in next(line for line in done.stdout.splitlines() if "telechat's own" in line)


def test_the_cuda_image(tmp_path: Path) -> None:
    made = build("cuda", tmp_path, packages=False)
    assert not made.skipped


def test_the_ascend_image(tmp_path: Path) -> None:
    made = build("ascend", tmp_path, packages=False, not_run="torch-npu==")
    (skipped,) = made.skipped
    assert "$TORCH_NPU_VERSION" in skipped
    system = (made.folder / "system.log").read_text(encoding="utf-8").splitlines()
    assert "groupadd --force --gid 1000 HwHiAiUser" in system
