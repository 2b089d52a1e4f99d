"""Compiles the CPU kernels into the wheel: with the machine's C compiler or, if it has none, that of ziglang.

An editable installation compiles nothing: a checkout builds its kernels on first use, so that edited sources
are never shadowed by an old library. With TELECHAT_PURE_WHEEL set nothing is compiled either: so does
`telechat bundle make` build wheels for other machines.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE_FOLDER = "telechat/ops/cpu"
ZIGLANG = "ziglang>=0.13"


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling asks for `dependencies`, calls `initialize` before it collects files, `finalize` after."""

    def dependencies(self) -> list[str]:
        """What pip installs for the build alone: clang as a wheel, where the machine has no compiler."""
        build = load_build_module(Path(self.root, "src", PACKAGE_FOLDER, "build.py"))
        if os.environ.get("TELECHAT_PURE_WHEEL") or os.name != "posix" or build.system_compiler():
            return []
        return [ZIGLANG]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library to the wheel. A failure is reported and costs speed, never the installation."""
        if version == "editable" or os.environ.get("TELECHAT_PURE_WHEEL"):
            return
        build = load_build_module(Path(self.root, "src", PACKAGE_FOLDER, "build.py"))
        self._folder = tempfile.TemporaryDirectory(prefix="telechat-kernels-")
        target = Path(self._folder.name, build.library_name())
        try:
            build.build(target)
        except build.BuildError as error:
            self.app.display_warning(f"the CPU kernels were not built, the CPU will be slower: {error}")
            return
        build_data["force_include"][str(target)] = f"{PACKAGE_FOLDER}/{target.name}"
        build_data["pure_python"] = False
        # Loaded through ctypes: any Python 3 on this platform can use it.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built beside the wheel."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def load_build_module(path: Path) -> ModuleType:
    """`telechat.ops.cpu.build` without the package, which is not installed yet."""
    spec = importlib.util.spec_from_file_location("telechat_kernel_build", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
