"""The wheel and the source distribution: complete, and usable in an empty environment of every supported Python."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
VERSIONS = ("3.11", "3.12", "3.13")
pytestmark = pytest.mark.docker  # they fetch packages


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build in a copy, as a checkout without anything else, and return the wheel and the source distribution."""
    copy = tmp_path_factory.mktemp("packages") / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("crossfade", "trainer", "kvstore", "deploy"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy.parent / "dist"), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = (copy.parent / "dist").glob("*.whl")
    [archive] = (copy.parent / "dist").glob("*.tar.gz")
    return wheel, archive


def sources() -> set[str]:
    """Return the files of all packages, by the paths that they are installed under."""
    found = set()
    for name in ("crossfade", "trainer", "kvstore", "deploy"):
        for path in (ROOT / name).rglob("*"):
            if path.suffix in {".py", ".css", ".html", ".js", ".sbatch", ".svg", ".yaml", ".zip"} and path.is_file():
                inside = path.relative_to(ROOT).as_posix()
                found.add(inside if name == "crossfade" else f"crossfade/{inside}")
    return found


def test_packages_have_every_file_under_one_name(packages: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(packages[0]).namelist())
    installed = {name for name in names if ".dist-info/" not in name}
    assert installed == sources()
    assert {name.split("/")[0] for name in installed} == {"crossfade"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(packages[1]) as archive:
        paths = {name.partition("/")[2] for name in archive.getnames()}
    assert sources() | {"pyproject.toml", "README.md", "LICENSE"} <= paths


def find_python(version: str) -> Path | None:
    """Return an interpreter of ``version``: on PATH, or one of pyenv's."""
    named = shutil.which(f"python{version}")
    for path in [*([Path(named)] if named else []), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]:
        result = subprocess.run([path, "-c", "import sys; print(sys.version)"], capture_output=True, check=False)
        if result.stdout.startswith(version.encode()):
            return path
    return None


@pytest.mark.parametrize("version", VERSIONS)
def test_installed_package_trains_on_every_kind_of_frame(
    packages: tuple[Path, Path], tmp_path: Path, version: str
) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"needs Python {version}: pyenv install {version}")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([UV, "venv", "--quiet", "--python", python, tmp_path / "venv"], check=True)
    interpreter = tmp_path / "venv/bin/python"
    install = [UV, "pip", "install", "--quiet", "--python", interpreter, packages[0], "pandas", "polars"]
    subprocess.run(install, check=True)
    result = subprocess.run(
        [interpreter, "-I", ROOT / "tests/support/drive_installed.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("artist") == 3
