"""Importing is free: no torch, no server, little time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "fastapi", "uvicorn", "starlette", "transformers", "numpy", "rich", "yaml", "httpx")
HELP_LIMIT_S = 0.150


def loaded_after(code: str) -> set[str]:
    """Top-level modules loaded in a fresh interpreter after running `code`."""
    probe = (
        f"{code}\nimport sys; sys.stderr.write('\\n' + ' '.join({{m.split('.')[0] for m in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import telechat",
        "import telechat.cli.main",
        "from telechat.cli.main import main; main(['--help'])",
        "from telechat.cli.main import main; main(['chatt'])",
        "import telechat.config, telechat.registry, telechat.logs, telechat.errors",
    ],
)
def test_loads_nothing_heavy(code: str) -> None:
    assert not loaded_after(code) & set(HEAVY)


def test_help_takes_little_cpu() -> None:
    times = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, "-m", "telechat", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        times.append(
            after.children_user - before.children_user + after.children_system - before.children_system
        )
    # The least of several runs is the cost of the work; the others also measure the neighbours.
    assert min(times) <= HELP_LIMIT_S, f"telechat --help took {min(times) * 1000:.0f} ms of CPU"


def test_public_names_resolve() -> None:
    import telechat

    for name in telechat.__all__:
        assert getattr(telechat, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = telechat.nothing_such


def test_loading_a_model_does_not_import_the_compiler() -> None:
    program = "import sys, telechat; telechat.LLM('demo'); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
