"""Environments of peers: one for each requirement file in ``benchmarks/peers/``, made in ``build/peers/``.

    python = ensure_environment("implicit", install=True)      # build/peers/implicit/bin/python

They are made once per content of the requirement files. Packages come from pip's own configuration.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

from suite.processes import BENCHMARKS, ROOT, MeasurementError, run_command

FOLDER = ROOT / "build" / "peers"
REQUIREMENTS = BENCHMARKS / "peers"
WITHOUT_DEPENDENCIES = {"torch": "torchrec"}
"""By environment, the requirement file that is installed last and without dependencies."""
INSTALL_SECONDS = 900.0
NOT_INSTALLED = "not installed"
"""How the reason begins with which a measurement of a peer fails that is not installed."""


def ensure_environment(name: str, install: bool) -> Path:
    """Return the interpreter of the environment ``name``, which is made if it does not exist and ``install`` is true.

    Raises:
        MeasurementError: it does not exist, or its packages cannot be installed.
    """
    folder = FOLDER / name
    files = [REQUIREMENTS / f"{name}.txt"]
    if name in WITHOUT_DEPENDENCIES:
        files.append(REQUIREMENTS / f"{WITHOUT_DEPENDENCIES[name]}.txt")
    stamp = folder / "installed"
    wanted = str(zlib.crc32(b"".join(file.read_bytes() for file in files)))
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return folder / "bin" / "python"
    if not install:
        raise MeasurementError(f"{NOT_INSTALLED}: --peers installs it")
    _install(folder, files)
    stamp.write_text(wanted, encoding="utf-8")
    return folder / "bin" / "python"


def _install(folder: Path, files: list[Path]) -> None:
    print(f"bench: installing {', '.join(file.name for file in files)} into {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    python = str(folder / "bin" / "python")
    try:
        run_command([sys.executable, "-m", "venv", str(folder)], INSTALL_SECONDS)
        for file, options in zip(files, ([], ["--no-deps"]), strict=False):
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options]
            run_command([*install, "--requirement", str(file)], INSTALL_SECONDS)
    except MeasurementError as error:
        raise MeasurementError(f"{NOT_INSTALLED}: {error}") from None


def versions(names: list[str]) -> dict[str, str]:
    """Return the versions of the packages of the environments ``names`` that exist."""
    found: dict[str, str] = {}
    for name in names:
        python = FOLDER / name / "bin" / "python"
        if python.exists():
            command = [str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
            listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.update({package["name"].lower(): package["version"] for package in json.loads(listed)})
    return found
