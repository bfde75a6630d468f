"""Small tables become the frames of pandas that Arrow makes, by a shorter way."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from crossfade.api.frames import to_frame

TABLE = pa.table(
    {
        "customer": pa.array(["a", "a", "é"]),
        "rank": np.arange(1, 4, dtype=np.int32),
        "track": pa.array([7, 8, 9]),
        "score": np.array([0.5, np.nan, -1], np.float32),
    }
)


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        TABLE.slice(1, 0),
        pa.concat_tables([TABLE, TABLE.slice(2)]),
        TABLE.append_column("track_name", pa.array(["A", None, "B"])),
        TABLE.append_column("count", pa.array([2**40, None, 3])),
        TABLE.append_column("vector", pa.array([[1.0], [2.0], [3.0]])),
    ],
    ids=["plain", "empty", "chunks", "no name", "no number", "lists"],
)
def test_frame_of_a_small_table_is_that_of_arrow(table: pa.Table) -> None:
    pd.testing.assert_frame_equal(to_frame(table, "pandas"), table.to_pandas(), check_column_type="exact")


def test_frames_are_independent_and_may_be_changed() -> None:
    first = to_frame(TABLE, "pandas")
    first.columns.name = "column"
    first.loc[0, ["customer", "score"]] = "z", 9.0
    first.rename(columns={"rank": "place"}, inplace=True)
    second = to_frame(TABLE, "pandas")
    pd.testing.assert_frame_equal(second, TABLE.to_pandas())
    assert second.columns.name is None
    assert first.loc[0].tolist() == ["z", 1, 7, 9.0]


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
