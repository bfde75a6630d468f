"""Timestamps in named formats: strptime, ISO, and epochs in several units; all become seconds since 1970."""

from pathlib import Path

import pyarrow as pa
import pytest
from preparing import interactions, prepare_files, write_parquet, write_text

pytestmark = pytest.mark.slow

SECONDS = 1_717_186_500  # 2024-05-31T20:15:00Z


def times(folder: Path, formats: list[str], texts: list[str]) -> list[int]:
    rows = [f"{number},1,{text}\n" for number, text in enumerate(texts)]
    train = write_text(folder / "e.csv", "customer,item,at\n" + "".join(rows))
    prepare_files(folder / "out", train, timestamp="at", timestamp_format=formats)
    return [row[3] for row in sorted(interactions(folder / "out", "train"))]


def test_each_value_is_read_in_the_first_format_that_fits(tmp_path: Path) -> None:
    formats = ["iso", "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%d %b %Y %H:%M:%S %z"]
    texts = ["2024-05-31T22:15:00+02:00", "31/05/2024 20:15", "05/31/2024 20:15", "01/02/2024 00:00"]
    texts.append("31 May 2024 22:15:00 +0200")
    expected = [SECONDS, SECONDS, SECONDS, 1_706_745_600, SECONDS]  # 1 February, not 2 January
    assert times(tmp_path, formats, texts) == expected


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("epoch-s", f"{SECONDS}"),
        ("epoch-ns", f"{SECONDS}999999999"),
    ],
)
def test_epochs_of_a_unit_are_rounded_down(tmp_path: Path, unit: str, value: str) -> None:
    assert times(tmp_path, [unit], [value, f"-{value}"]) == [SECONDS, -SECONDS - (unit != "epoch-s")]


def test_of_several_units_the_size_of_the_number_decides(tmp_path: Path) -> None:
    texts = [str(SECONDS), f"{SECONDS}000", f"{SECONDS}000000", f"{SECONDS}000000000", "99999999999", "100000000000"]
    units = ["epoch-ns", "epoch-s", "epoch-us", "epoch-ms"]
    assert times(tmp_path, units, texts) == [SECONDS] * 4 + [99_999_999_999, 100_000_000]


def test_formats_apply_to_strings_and_integers_of_parquet_but_not_to_its_timestamps(tmp_path: Path) -> None:
    columns = {
        "integers": pa.array([SECONDS * 1000]),
        "strings": pa.array(["31/05/2024 20:15"]),
        "datetimes": pa.array([SECONDS], pa.timestamp("s")),
    }
    files = [
        write_parquet(tmp_path / f"{name}.parquet", customer=[1], item=[1], at=values)
        for name, values in columns.items()
    ]
    manifest = prepare_files(tmp_path / "out", *files, timestamp="at", timestamp_format=["%d/%m/%Y %H:%M", "epoch-ms"])
    assert [row[3] for row in interactions(tmp_path / "out", "train")] == [SECONDS] * 3
    assert manifest.source["timestamp_formats"] == ["%d/%m/%Y %H:%M", "epoch-ms"]
