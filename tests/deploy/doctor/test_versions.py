"""Installed packages are compared with the metadata of the installed distribution."""

import subprocess
import sys
from pathlib import Path

import pytest

from crossfade.deploy.doctor.findings import Finding
from crossfade.deploy.doctor.host_checks import check_versions

pytestmark = pytest.mark.slow


def install(folder: Path, name: str, version: str, *lines: str) -> None:
    """Write the metadata of a distribution into ``folder``, as an installer does."""
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("\n".join(("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, "")))


def findings() -> dict[str, Finding]:
    return {finding.check: finding for finding in check_versions()}


def test_environment_of_the_tests_has_the_required_versions() -> None:
    assert {name: finding.state for name, finding in findings().items()} == {"python": "ok", "packages": "ok"}


def test_wrong_and_missing_packages_are_named_with_how_to_install_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "duckdb", "1.4.0")
    install(
        tmp_path,
        "crossfade",
        "0.1.0",
        "Requires-Python: >=3.99",
        "Requires-Dist: duckdb>=2.0",
        "Requires-Dist: no-such-package<3",
        "Requires-Dist: numpy>=1",
        'Requires-Dist: numpy==0.5; extra == "used"',
        'Requires-Dist: pyarrow<1; extra == "unused"',
        'Requires-Dist: no-other-package; extra == "unused"',
        "Provides-Extra: used",
        "Provides-Extra: unused",
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = findings()
    assert found["python"].state == found["packages"].state == "fix"
    assert "expected >=3.99" in found["python"].message
    problems, _, fix = found["packages"].message.partition("; ")
    assert problems.startswith("duckdb is 1.4.0, no-such-package is missing, numpy is ")
    assert fix == "pip install 'duckdb>=2.0' 'no-such-package<3' 'numpy==0.5'"


@pytest.mark.slow
def test_pandas_that_needs_a_later_numpy_is_named_by_doctor_and_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = [
        f"Requires-Dist: numpy>={bound}; python_version {range_}"
        for bound, range_ in (("99.0.2", '< "3.14"'), ("99.3.3", '>= "3.14"'))
    ]
    install(tmp_path, "pandas", "9.1.1", *bounds)
    monkeypatch.syspath_prepend(tmp_path)
    found = findings()["pandas"]
    assert found.state == "warning"
    assert "pandas 9.1.1 needs numpy 99.0.2 or later, but " in found.message
    assert "pip install 'pandas<3.1'" in found.message
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    use = "from crossfade.api.frames import default_kind; print(default_kind())"
    result = subprocess.run([sys.executable, "-c", use], capture_output=True, text=True, check=True)
    assert found.message in result.stderr
    assert result.stdout == "arrow\n"
