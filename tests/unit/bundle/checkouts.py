"""A checkout in miniature, whose wheel is built without fetching anything, and wheels that it needs."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

# A build backend needs three functions at most; this one writes a wheel with the name and version given.
BACKEND = """
import os
from make_wheel import write_wheel

def build_wheel(folder, config_settings=None, metadata_directory=None):
    code = "import os\\ndef main():\\n    print('telechat 0.0.1')\\n"
    pure = "pure" if os.environ.get("TELECHAT_PURE_WHEEL") else "native"
    return write_wheel(folder, "telechat", "0.0.1", requires=["little>=1", "gguf; extra == 'gguf'"],
                       extras=["gguf"], files={"telechat/__init__.py": code, "telechat/kind.txt": pure},
                       scripts={"telechat": "telechat:main"}).name
"""
PYPROJECT = """[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "telechat"
version = "0.0.1"

[project.optional-dependencies]
gguf = ["gguf"]
"""


def write_wheel(
    folder: str | Path,
    name: str,
    version: str,
    *,
    requires: list[str] | None = None,
    extras: list[str] | None = None,
    files: dict[str, str] | None = None,
    scripts: dict[str, str] | None = None,
) -> Path:
    """A wheel of a pure Python package."""
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Provides-Extra: {extra}" for extra in extras or []]
    metadata += [f"Requires-Dist: {line}" for line in requires or []]
    content = dict(files or {f"{name}.py": ""})
    content[f"{info}/METADATA"] = "\n".join(metadata) + "\n"
    content[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    if scripts:
        lines = [f"{command} = {target}" for command, target in scripts.items()]
        content[f"{info}/entry_points.txt"] = "\n".join(["[console_scripts]", *lines]) + "\n"
    record = ""
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    wheel = Path(folder, f"{name}-{version}-py3-none-any.whl")
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return wheel


def make_checkout(folder: Path) -> Path:
    """The checkout: what `bundle make --source` takes."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (folder / "backend.py").write_text(BACKEND, encoding="utf-8")
    (folder / "make_wheel.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "constraints.txt").write_text("little==1.5\n", encoding="utf-8")
    return folder


def make_index(folder: Path) -> Path:
    """Wheels for `--find-links`: two versions of `little`, of which the constraints take the older."""
    folder.mkdir()
    for name, version in (("little", "1.5"), ("little", "2.0"), ("gguf", "0.1")):
        write_wheel(folder, name, version)
    return folder
