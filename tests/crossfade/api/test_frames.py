"""The kind of tables that are returned where the installed pandas cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_pandas_that_needs_a_later_numpy_is_named_and_tables_are_arrow(tmp_path: Path) -> None:
    metadata = tmp_path / "pandas-9.1.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    bounds = 'numpy>=99.0.2; python_version < "3.14"', 'numpy>=99.3.3; python_version >= "3.14"'
    lines = [
        "Metadata-Version: 2.1",
        "Name: pandas",
        "Version: 9.1.1",
        *(f"Requires-Dist: {bound}" for bound in bounds),
    ]
    metadata.write_text("\n".join(lines))
    use = "from crossfade.api.frames import default_kind; print(default_kind())"
    command, environment = [sys.executable, "-c", use], os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "pandas 9.1.1 needs numpy 99.0.2 or later, but " in result.stderr
    assert "pip install 'pandas<3.1'" in result.stderr
    assert result.stdout == "arrow\n"
