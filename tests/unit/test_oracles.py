"""What `make oracles` installs and runs is there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def oracles() -> ModuleType:
    """`tools/oracles.py`, which is no package."""
    spec = importlib.util.spec_from_file_location("oracles", ROOT / "tools" / "oracles.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_every_environment_has_its_requirements_and_tests() -> None:
    named = oracles().ENVIRONMENTS
    missing = [
        path
        for environment in named
        for path in (f"oracles/{environment.requirements}", *environment.tests)
        if not (ROOT / "tests" / path).exists()
    ]
    assert missing == []
    assert {environment.requirements for environment in named} == {
        path.name for path in (ROOT / "tests" / "oracles").glob("*.txt")
    }
