"""Small tables become the frames of pandas that Arrow makes, by a shorter way."""

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
