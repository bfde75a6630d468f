"""deploy/torch.sh: it installs PyTorch in the range of pyproject.toml once, and nothing else changes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """\
#!/bin/sh
# Python, apart from pip and PyTorch.
for word; do
    [ "${previous-}" != --constraint ] || cp "$word" constraints
    previous=$word
done
case "$*" in
    *"-m pip install"*) printf '%s' "$previous" >installed; echo 'no such package'; exit "${PIP_CODE:-0}" ;;
    *"import torch"*) echo 'torch: 2.13.0 for the CPU' ;;
    *) exec PYTHON "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with the real script and lock, whose extra ``torch`` is a package that is not installed."""
    (tmp_path / "deploy").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("deploy/torch.sh", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(PYTHON.replace("PYTHON", sys.executable, 1))
    python.chmod(0o755)
    require(tmp_path, "packaging>=999")
    return tmp_path


def require(checkout: Path, requirement: str) -> None:
    (checkout / "pyproject.toml").write_text(f'[project.optional-dependencies]\ntorch = ["{requirement}"]\n')


def install(checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", **variables}
    script = ["sh", "deploy/torch.sh"]
    return subprocess.run(script, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def test_package_that_is_missing_is_installed_under_the_versions_of_the_lock(checkout: Path) -> None:
    result = install(checkout)
    assert (result.returncode, result.stderr) == (0, "")
    assert (checkout / "installed").read_text() == "packaging>=999"
    assert "torch: 2.13.0 for the CPU\n" in result.stdout
    assert "set PIP_EXTRA_INDEX_URL" in result.stdout
    constraints = (checkout / "constraints").read_text().splitlines()
    assert any(line.startswith("numpy==1.26.") for line in constraints)
    assert len(constraints) == len(re.findall(r"^[a-z]", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert not any("hash" in line or line.endswith("\\") for line in constraints)


def test_package_in_the_range_is_kept(checkout: Path) -> None:
    require(checkout, "packaging>=20,<999")
    result = install(checkout)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not (checkout / "installed").exists()


def test_failure_of_pip_ends_with_one_line_and_the_log(checkout: Path) -> None:
    result = install(checkout, PIP_CODE="1")
    assert result.returncode == 2
    assert result.stderr == "  | no such package\ntorch: pip failed (log: .venv/torch.log)\n"


def test_missing_environment_is_reported(checkout: Path) -> None:
    result = install(checkout, VENV="nowhere")
    assert (result.returncode, result.stderr) == (2, "torch: there is no nowhere/bin/python: run make setup first\n")
