"""What a bundle says and does on the machine it is carried to: its installers and its README."""

from __future__ import annotations

INSTALL_SH = """#!/bin/sh
# Installs telechat from this folder, without a network: sh install.sh [FOLDER OF THE NEW ENVIRONMENT]
set -e
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-$here-venv}
if command -v sha256sum > /dev/null; then
    (cd "$here" && sha256sum --quiet -c SHA256SUMS)
fi
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --no-index --find-links "$here/wheels" "@TARGET@"
echo "Installed. Start it with: $venv/bin/telechat deploy --model-path @MODEL_SH@"
"""

INSTALL_BAT = """@echo off
rem Installs telechat from this folder, without a network: install.bat [FOLDER OF THE NEW ENVIRONMENT]
setlocal
set "here=%~dp0"
set "venv=%~1"
if "%venv%"=="" set "venv=%here:~0,-1%-venv"
if "%PYTHON%"=="" set "PYTHON=python"
"%PYTHON%" -m venv "%venv%" || exit /b 1
"%venv%\\Scripts\\python" -m pip install --no-index --find-links "%here%wheels" "@TARGET@" || exit /b 1
echo Installed. Start it with: "%venv%\\Scripts\\telechat" deploy --model-path @MODEL_BAT@
"""

README = """telechat without a network
==========================

sh install.sh            installs into a new folder beside this one; needs Python @PYTHON@ with venv
install.bat              the same on Windows
sha256sum -c SHA256SUMS  checks the files, as `telechat bundle verify` does once that is installed

For @MACHINE@. Model: @MODEL@.
"""


def fill(text: str, *, extras: tuple[str, ...], model: str | None, python: str, machine: str) -> str:
    """One of the texts above, for a bundle.

    Args:
        text: the text.
        extras: extras to install.
        model: name of the folder below `models`; None is the demo model, which is in our wheel.
        python: version of Python, as in 3.11.
        machine: the platform, for people.
    """
    target = f"telechat[{','.join(extras)}]" if extras else "telechat"
    values = {
        "TARGET": target,
        "MODEL_SH": f"$here/models/{model}" if model else "demo",
        "MODEL_BAT": f'"%here%models\\{model}"' if model else "demo",
        "MODEL": f"models/{model}" if model else "demo (in the wheel)",
        "PYTHON": python,
        "MACHINE": machine,
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text
