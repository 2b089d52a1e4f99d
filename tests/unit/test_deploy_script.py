"""`deploy.py`: when it installs and what, and what it hands over. Its children are recorded, not run."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """deploy.py as a module, in a tree of its own, with every started process recorded in `script.calls`."""
    spec = importlib.util.spec_from_file_location("deploy_script", ROOT / "deploy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    monkeypatch.setattr(module, "ROOT", str(tmp_path))
    monkeypatch.setattr(module, "VENV", str(tmp_path / ".venv"))
    monkeypatch.setattr(module, "STAMP", str(tmp_path / ".venv" / "telechat-setup.json"))
    module.calls = []
    module.installed = 0

    def call(command: list[str], **options: object) -> int:
        module.calls.append(command)
        if "install" in command:
            return module.installed
        return 0 if Path(command[0]).exists() else 1

    def make_venv() -> None:
        module.calls.append(["venv"])
        python = tmp_path / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()

    monkeypatch.setattr(module.subprocess, "call", call)
    monkeypatch.setattr(module, "make_venv", make_venv)
    monkeypatch.setattr(module, "WINDOWS", False)
    monkeypatch.setenv("CC", "cc")
    return module


def installs(script: ModuleType) -> list[str]:
    """What pip was asked to install, once per call."""
    return [command[-1] for command in script.calls if "install" in command]


def test_first_run_makes_the_environment_and_installs(script: ModuleType) -> None:
    python = script.prepare([])
    assert python == f"{script.VENV}/bin/python"
    assert script.calls[0] == [python, "-c", "pass"] and ["venv"] in script.calls
    assert installs(script) == [script.ROOT]
    (command,) = [command for command in script.calls if "install" in command]
    assert command[command.index("-c") + 1] == f"{script.ROOT}/constraints.txt"


def test_second_run_does_nothing(script: ModuleType) -> None:
    script.prepare(["dev"])
    script.calls.clear()
    script.prepare([])
    script.prepare(["dev"])
    assert script.calls == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_installs_again_with_the_same_extras(script: ModuleType, name: str) -> None:
    script.prepare(["dev"])
    Path(script.ROOT, name).write_text("changed", encoding="utf-8")
    script.calls.clear()
    script.prepare([])
    assert installs(script) == [f"{script.ROOT}[dev]"] and ["venv"] not in script.calls


def test_another_extra_is_added(script: ModuleType) -> None:
    script.prepare(["dev"])
    script.prepare(["hf"])
    assert installs(script)[-1] == f"{script.ROOT}[dev,hf]"


def test_without_a_compiler_comes_one_from_pypi(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    script.prepare(["dev"])
    assert installs(script) == [f"{script.ROOT}[compiler,dev]"]
    script.calls.clear()
    script.prepare([])
    assert script.calls == []
    (tmp_path / "gcc").touch(mode=0o755)
    assert script.has_compiler()
    (tmp_path / "gcc").unlink()
    monkeypatch.setattr(script, "WINDOWS", True)
    assert script.has_compiler()


def test_a_moved_tree_installs_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = script.fingerprint()
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (moved / name).write_text(name, encoding="utf-8")
    monkeypatch.setattr(script, "ROOT", str(moved))
    assert script.fingerprint() != before


def test_a_damaged_stamp_installs_again(script: ModuleType) -> None:
    script.prepare([])
    Path(script.STAMP).write_text("{", encoding="utf-8")
    script.prepare([])
    assert len(installs(script)) == 2


def test_a_failed_installation_is_one_line_and_not_recorded(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    script.installed = 1
    assert script.main([]) == 1
    assert "error: pip could not install" in capsys.readouterr().err
    assert not Path(script.STAMP).exists()


def test_arguments_are_handed_over(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    handed = []
    monkeypatch.setattr(script.os, "execv", lambda program, command: handed.append(command))
    script.main(["--api-port", "8080"])
    script.main(["--config", "mine.yaml"])
    script.main(["--config=mine.yaml"])
    prefix = [f"{script.VENV}/bin/python", "-m", "telechat", "deploy"]
    assert handed == [
        [*prefix, "--config", f"{script.ROOT}/deploy_config.yaml", "--api-port", "8080"],
        [*prefix, "--config", "mine.yaml"],
        [*prefix, "--config=mine.yaml"],
    ]


def test_setup_only(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--setup-only", "--extra", "dev", "--extra", "hf"]) == 0
    assert json.loads(Path(script.STAMP).read_text(encoding="utf-8"))["extras"] == ["dev", "hf"]
    assert script.main(["--setup-only", "--extras", "dev"]) == 1
    assert "--extra NAME" in capsys.readouterr().err


def test_an_old_python_is_told(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "MIN_PYTHON", (99, 0))
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    assert script.main([]) == 1
    assert "needs Python 99.0 or newer" in capsys.readouterr().err


def test_a_newer_python_on_the_path_takes_over(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.sys, "version_info", (3, 8, 1))
    found = {"python3.12": "/no/such/python3.12", "python3.11": sys.executable}
    monkeypatch.setattr(script.shutil, "which", found.get)
    script.main(["--gpu", "0"])
    assert script.calls[-1] == [sys.executable, str(ROOT / "deploy.py"), "--gpu", "0"]


def test_missing_venv_module_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: ModuleType
) -> None:
    spec = importlib.util.spec_from_file_location("fresh_deploy_script", ROOT / "deploy.py")
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    failed = type("Done", (), {"returncode": 1, "stdout": "ensurepip is not available."})
    monkeypatch.setattr(fresh.subprocess, "run", lambda *words, **options: failed)
    with pytest.raises(fresh.SetupError, match=r"apt install python3\.\d+-venv"):
        fresh.make_venv()


def test_only_the_standard_library_and_old_syntax() -> None:
    """A Python that is too old must get as far as the message that says so."""
    text = (ROOT / "deploy.py").read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 7))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names


def test_wrappers_are_one_liners() -> None:
    shell = (ROOT / "deploy.sh").read_text(encoding="utf-8").splitlines()
    assert shell[0] == "#!/bin/sh" and len(shell) == 2 and "deploy.py" in shell[1] and '"$@"' in shell[1]
    batch = (ROOT / "deploy.bat").read_text(encoding="utf-8").splitlines()
    assert len(batch) == 1 and "%~dp0deploy.py" in batch[0] and "%*" in batch[0]
