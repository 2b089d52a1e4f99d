"""Bundles: made of a miniature checkout, checked, damaged, interrupted, and installed without an index."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.bundle.checkouts import make_checkout, make_index

from telechat.bundle import make, wheels
from telechat.cli.main import main

POSIX = pytest.mark.skipif(os.name == "nt", reason="the shell installer")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkout(tmp_path_factory.mktemp("source") / "checkout")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("index") / "wheels")


@pytest.fixture
def only_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    yield


@pytest.fixture(scope="module")
def bundle(
    checkout: Path, index: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished bundle with a model; read only."""
    out = tmp_path_factory.mktemp("made") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(index))
        assert main(["bundle", "make", str(out), str(tiny_model_folder), "--source", str(checkout)]) == 0
    return out


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


class FakeWheels:
    """In place of pip: a wheel is a small archive; notes how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(make, "gather_wheels", self.gather)

    def gather(self, folder: Path, checkout: Path, settings: make.BundleSettings) -> None:
        self.calls += 1
        with zipfile.ZipFile(folder / "torch-1-py3-none-any.whl", "w") as archive:
            archive.writestr("x", "y")


def names(bundle: Path) -> list[str]:
    return sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())


def test_what_a_bundle_holds(bundle: Path, tiny_model_folder: Path) -> None:
    model = tiny_model_folder.name
    assert {"wheels/telechat-0.0.1-py3-none-any.whl", "wheels/little-1.5-py3-none-any.whl"} <= set(
        names(bundle)
    )
    assert not any("little-2" in name or "gguf" in name for name in names(bundle))
    for path in tiny_model_folder.iterdir():
        assert (bundle / "models" / model / path.name).read_bytes() == path.read_bytes()
    assert {"SHA256SUMS", "install.sh", "install.bat", "README.txt", "constraints.txt"} <= set(names(bundle))
    assert not bundle.with_name("bundle.partial").exists()


@POSIX
def test_it_installs_without_an_index(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a space in its name, in a fresh environment, with nothing but the bundle."""
    elsewhere = Path(shutil.copytree(bundle, tmp_path / "carried over" / "bundle"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    # An index that cannot be reached: whoever asks it fails.
    environment = {**kept, "PIP_INDEX_URL": "http://127.0.0.1:9/", "PYTHON": sys.executable}
    command = ["sh", str(elsewhere / "install.sh")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    program = tmp_path / "carried over" / "bundle-venv" / "bin" / "telechat"
    assert str(program) in done.stdout and f"{elsewhere}/models/" in done.stdout
    said = subprocess.run([program, "--version"], env=kept, capture_output=True, text=True, check=True).stdout
    assert said == "telechat 0.0.1\n"
    assert main(["bundle", "verify", str(elsewhere)]) == 0


@POSIX
def test_the_installer_refuses_an_altered_bundle(copied: Path) -> None:
    (copied / "wheels" / "little-1.5-py3-none-any.whl").write_bytes(b"other")
    done = subprocess.run(["sh", str(copied / "install.sh")], capture_output=True, text=True)
    assert done.returncode != 0 and "little" in done.stdout + done.stderr
    assert not copied.with_name("bundle-venv").exists()


@POSIX
@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="coreutils is not installed")
def test_coreutils_reads_the_manifest(bundle: Path) -> None:
    subprocess.run(["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd=bundle, check=True)


def test_verify_names_what_is_wrong(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "verify", str(copied)]) == 0
    assert "sound" in capsys.readouterr().out
    (copied / "install.bat").unlink()
    (copied / "models" / "new.txt").write_text("x", encoding="utf-8")
    weights = next(copied.glob("models/*/model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert main(["bundle", "verify", str(copied)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "missing  install.bat",
        f"altered  {weights.relative_to(copied).as_posix()}",
        "extra    models/new.txt",
    ]


@pytest.mark.parametrize("line", ["0" * 64 + "  ../outside", "0" * 64 + "  /etc/passwd", "no sum"])
def test_a_manifest_reaches_no_further(copied: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "SHA256SUMS").write_text(line + "\n", encoding="utf-8")
    assert main(["bundle", "verify", str(copied)]) == 1
    assert "line 1" in capsys.readouterr().err


def test_a_folder_without_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "verify", str(tmp_path)]) == 1
    assert "has no SHA256SUMS" in capsys.readouterr().err


def test_extras_platform_and_python_reach_pip(
    checkout: Path, only_index: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option changes what is fetched or how; the wheel for another machine has no kernels in it."""
    asked: list[list[str]] = []
    run = subprocess.run

    def note(command: list[str], **options: object) -> object:
        asked.append(command)
        return run(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(wheels.subprocess, "run", note)
    tag = {"linux": "manylinux_2_28_aarch64", "darwin": "macosx_14_0_arm64", "win32": "win_arm64"}[
        sys.platform
    ]
    out = tmp_path / "bundle"
    words = ["--extra", "gguf", "--platform", tag, "--python-version", "3.12", "--source", str(checkout)]
    assert main(["bundle", "make", str(out), "demo", *words]) == 0
    assert "wheels/gguf-0.1-py3-none-any.whl" in names(out) and not (out / "models").exists()
    (download,) = [command for command in asked if "download" in command]
    assert download[download.index("--platform") + 1] == tag
    assert download[download.index("--python-version") + 1] == "3.12"
    with zipfile.ZipFile(out / "wheels" / "telechat-0.0.1-py3-none-any.whl") as wheel:
        assert wheel.read("telechat/kind.txt") == b"pure"
    assert (
        '"telechat[gguf]"' in (out / "install.sh").read_text() and "3.12" in (out / "README.txt").read_text()
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--platform", "plan9_386"], "cannot be made on"),
        (["--extra", "ggufs"], "no extra 'ggufs'"),
        (["--python-version", "3.8"], "3.8"),
        (["--source", "/"], "not a checkout"),
    ],
)
def test_what_is_refused(
    words: list[str], message: str, checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if "--source" in words else ["--source", str(checkout)]
    assert main(["bundle", "make", str(tmp_path / "new"), "demo", *given, *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(checkout: Path, tmp_path: Path) -> None:
    assert main(["bundle", "make", str(tmp_path), "demo", "--source", str(checkout)]) == 2
    assert not list(tmp_path.iterdir())


def test_without_a_checkout_the_one_it_runs_from_is_taken(tmp_path: Path) -> None:
    assert (wheels.find_source(None) / "src" / "telechat").is_dir()


def test_pips_failure_is_one_line(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    out = tmp_path / "bundle"
    assert main(["bundle", "make", str(out), "demo", "--source", str(checkout)]) == 1
    out_text, err = capfd.readouterr()
    assert not out_text and "ERROR:" in err and "little" in err
    assert err.splitlines()[-1].startswith("error: pip could not fetch the wheels")
    assert not out.exists() and out.with_name("bundle.partial").is_dir()


def interrupted(out: Path, model: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stop a run at its second file of the model; what is then in the unfinished bundle."""
    copy, count = make._copy, []

    def copy_one(path: Path, target: Path, advance: object) -> str:
        count.append(path)
        if len(count) == 2:
            target.with_name(f"{target.name}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        return copy(path, target, advance)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(make, "_copy", copy_one)
        assert main(["bundle", "make", str(out), str(model), "--source", str(checkout)]) == 130
    assert not out.exists()
    return names(out.with_name(f"{out.name}.partial"))


def test_an_interrupted_run_goes_on(
    checkout: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeWheels(monkeypatch)
    out = tmp_path / "bundle"
    left = interrupted(out, tiny_model_folder, checkout, monkeypatch)
    (done,) = [name for name in left if name.startswith("models/") and not name.endswith(".part")]
    copied = []
    copy = make._copy
    monkeypatch.setattr(make, "_copy", lambda path, *rest: copied.append(path.name) or copy(path, *rest))
    assert main(["bundle", "make", str(out), str(tiny_model_folder), "--source", str(checkout)]) == 0
    assert Path(done).name not in copied and copied
    assert not any(name.endswith(".part") for name in names(out))
    assert main(["bundle", "verify", str(out)]) == 0


def test_a_damaged_copy_of_an_earlier_run_is_made_anew(
    checkout: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeWheels(monkeypatch)
    out = tmp_path / "bundle"
    left = interrupted(out, tiny_model_folder, checkout, monkeypatch)
    (done,) = [name for name in left if name.startswith("models/") and not name.endswith(".part")]
    path = out.with_name("bundle.partial") / done
    path.write_bytes(b"\0" * path.stat().st_size)
    assert main(["bundle", "make", str(out), str(tiny_model_folder), "--source", str(checkout)]) == 0
    assert (out / done).read_bytes() == (tiny_model_folder / Path(done).name).read_bytes()


def test_one_begun_for_something_else_is_not_mixed_in(
    checkout: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeWheels(monkeypatch)
    out = tmp_path / "bundle"
    interrupted(out, tiny_model_folder, checkout, monkeypatch)
    assert main(["bundle", "make", str(out), "demo", "--source", str(checkout)]) == 0
    assert not (out / "models").exists()
    assert json.loads((out / "bundle.json").read_text(encoding="utf-8"))["model"] == "demo"


def test_half_a_wheel_is_fetched_again(tmp_path: Path, index: Path) -> None:
    whole = Path(shutil.copy(index / "little-1.5-py3-none-any.whl", tmp_path))
    half = tmp_path / "gguf-0.1-py3-none-any.whl"
    half.write_bytes((index / half.name).read_bytes()[:-30])
    wheels.remove_unfinished(tmp_path)
    assert whole.exists() and not half.exists()


def test_a_source_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thing-1.0.tar.gz").touch()
    with pytest.raises(Exception, match=r"no wheel for this machine of thing-1\.0\.tar\.gz"):
        wheels.check_all_wheels(tmp_path)


def test_too_small_a_disk(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeWheels(monkeypatch)
    monkeypatch.setattr(make.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**8))  # type: ignore[attr-defined]
    assert main(["bundle", "make", str(tmp_path / "b"), "demo", "--source", str(checkout)]) == 1
    err = capsys.readouterr().err
    assert "needs 0.4 GB more" in err and "0.1 GB free" in err and fake.calls == 0


def test_code_of_a_model_folder_stays_out(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    for name in ("modeling_x.py", ".lock", "old.bin", "y.safetensors.part"):
        (folder / name).touch()
    assert {path.name for path in make.model_files(folder)} == {
        path.name for path in tiny_model_folder.iterdir()
    }


@pytest.mark.parametrize(
    ("model", "name"), [("TeleAI/TeleChat2-7B", "TeleChat2-7B"), ("modelscope:a/b$(c)", "b__c_")]
)
def test_the_models_folder_is_safe_to_name(model: str, name: str) -> None:
    assert make._folder_name(model) == name
