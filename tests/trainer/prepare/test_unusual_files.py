"""Files that are not what their names say: pipes, integers written as fractions, and small files of gigabytes."""

import gzip
import os
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from command_here import crossfade_here
from preparing import entries, interactions, prepare_files, vocabulary, write_parquet, write_text
from small_disk import MountError, mounted_disk

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.raw_files import open_columns
from crossfade.trainer.prepare.text_records import Record

OPTIONS = {"timestamp": "at", "on_missing": "drop", "hold_out_valid": "none"}


@pytest.mark.slow
@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_integers_with_gaps_that_pandas_made_fractional_are_integers(tmp_path: Path, extension: str) -> None:
    plays = pd.DataFrame({"customer": range(100), "item": [7, 8] * 50, "at": range(1_700_000_000, 1_700_000_100)})
    gaps = plays.astype({"customer": "float", "at": "float"})
    gaps.loc[3, "customer"] = np.nan
    path = tmp_path / f"gaps.{extension}"
    gaps.to_csv(path, index=False) if extension == "csv" else gaps.to_parquet(path)
    whole = write_text(tmp_path / "whole.csv", "customer,item,at\n500,7,1700000500\n")
    manifest = prepare_files(tmp_path / "out", path, whole, **OPTIONS)
    assert manifest.entities["customer"].id_type == "int64"
    assert manifest.source["dropped_missing"] == 1
    assert {row["id"] for row in vocabulary(tmp_path / "out", "customer")} == {*range(100), 500} - {3}
    assert {row[3] for row in interactions(tmp_path / "out", "train")} >= {1_700_000_000, 1_700_000_500}


@pytest.mark.slow
def test_fractions_and_texts_with_a_fraction_stay_what_they_are(tmp_path: Path) -> None:
    fractions = write_parquet(tmp_path / "e.parquet", customer=[1.0, 2.5], item=[1, 2])
    with pytest.raises(InputError, match="holds fractional numbers"):
        prepare_files(tmp_path / "out", fractions)
    texts = write_text(tmp_path / "e.csv", "customer,item\n1.0,a\n2.5,b\n")
    versions = write_text(tmp_path / "v.csv", "customer,item\n1.0,a\n2.0,b\n")
    for file, options in ((texts, {}), (versions, {"id_type": "string"})):
        prepare_files(tmp_path / file.stem, file, hold_out_valid="none", **options)
        assert "1.0" in {row["id"] for row in vocabulary(tmp_path / file.stem, "customer")}


@pytest.mark.slow
def test_text_that_decompresses_to_too_much_stops_while_it_is_read(tmp_path: Path) -> None:
    line = b"1," + b"x" * 998 + b"\n"
    with pa.CompressedOutputStream(str(tmp_path / "e.csv.zst"), "zstd") as file:
        file.write(b"customer,item\n")
        for _ in range(1200):
            file.write(line * 1000)
    assert (tmp_path / "e.csv.zst").stat().st_size < 1 << 20
    with pytest.raises(InputError, match=r"decodes to 1,07[\d,]+ bytes or more"):
        prepare_files(tmp_path / "out", tmp_path / "e.csv.zst")


def test_pipes_and_devices_are_rejected_at_once_wherever_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    write_text(tmp_path / "e.csv", "customer,item\n1,1\n")
    for words in (
        ("--events", "/dev/zero", "--format", "csv"),
        ("--events", "e.csv", "--names", "item=pipe.csv:a:b"),
        ("--events", "e.csv", "--features", "item=pipe.csv:a:b"),
    ):
        result = crossfade_here("prepare", *words, "--out", "data", cwd=tmp_path)
        assert result.returncode == 2
        assert "is a FIFO, socket, or device" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("kilobytes", "memory"), [(200, None), (3000, 0.03), (9000, 0.03)])
def test_full_disk_is_named_and_nothing_is_left(tmp_path: Path, kilobytes: int, memory: float | None) -> None:
    rows = "".join(f"customer-{n},item-{n % 50_000}-{'x' * 20}\n" for n in range(150_000))
    events = write_text(tmp_path / "e.csv", f"customer,item\n{rows}")
    try:
        with mounted_disk(tmp_path / "disk", kilobytes << 10) as disk:
            with pytest.raises(CrossfadeError) as caught:
                prepare_files(disk / "out", events, memory=memory)
            assert "make room, or name another disk with" in str(caught.value)
            assert str(disk) in str(caught.value)
            assert entries(disk) == []
    except MountError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("name", "bad_lines"), [("events.csv", 0), ("events.csv.gz", 1)])
def test_file_is_read_by_line_after_lack_of_memory_only_if_its_lines_have_no_limit(
    tmp_path: Path, name: str, bad_lines: int
) -> None:
    text = "customer,item\n1,2,3\n" + "".join(f"{n},{7 * n}\n" for n in range(200_000))
    path = write_text(tmp_path / name, gzip.compress(text.encode(), 1) if name.endswith(".gz") else text)
    file, columns, found = RawFile(path, "csv"), {"query": "customer", "item": "item"}, list[Record]()
    connection = duckdb.connect(config={"memory_limit": "2MB", "temp_directory": "", "threads": 1})
    with connection, pytest.raises(duckdb.OutOfMemoryException):
        open_columns(connection, file, columns, on_fault=lambda _, record: found.append(record))
    assert len(found) == bad_lines
