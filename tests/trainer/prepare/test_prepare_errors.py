"""Rejected input of ``prepare``: each message names the file, the place and the fix, and nothing is written."""

import datetime as dt
import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from error_table import documented
from preparing import entries, write_parquet, write_text

from crossfade.base.errors import InputError
from crossfade.trainer.prepare.option_values import NamesFile
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare

Case = Callable[[Path], dict[str, Any]]


def csv_case(text: str | bytes, name: str = "e.csv", **options: Any) -> Case:
    return lambda folder: {"train": [write_text(folder / name, text)], **options}


def parquet_case(options: dict[str, Any] | None = None, **columns: Any) -> Case:
    return lambda folder: {"train": [write_parquet(folder / "e.parquet", **columns)], **(options or {})}


def lightgcn_case(text: str | bytes, **options: Any) -> Case:
    return csv_case(text, "e.txt", format="lightgcn", **options)


def two_files(first: str, second: str, **options: Any) -> Case:
    return lambda folder: {
        "train": [write_text(folder / "a.csv", first), write_text(folder / "b.csv", second)],
        **options,
    }


def truncated_parquet(folder: Path) -> dict[str, Any]:
    path = write_parquet(folder / "e.parquet", customer=list(range(1000)), item=list(range(1000)))
    write_text(path, path.read_bytes()[:2000])
    return {"train": [path]}


def corrupt_parquet(folder: Path) -> dict[str, Any]:
    path = write_parquet(folder / "e.parquet", customer=list(range(5000)), item=list(range(5000)))
    content = bytearray(path.read_bytes())
    content[4:3000] = bytes(2996)  # the footer stays intact
    write_text(path, bytes(content))
    return {"train": [path]}


def same_file_twice(folder: Path) -> dict[str, Any]:
    path = write_text(folder / "e.csv", "customer,item\n1,1\n")
    return {"train": [path], "test": [str(folder / "*.csv")]}


def train_and_empty_test(folder: Path) -> dict[str, Any]:
    return {
        "train": [write_text(folder / "e.csv", "customer,item\n1,1\n")],
        "test": [write_text(folder / "t.csv", "customer,item\n")],
    }


def output_above_input(folder: Path) -> dict[str, Any]:
    (folder / "out").mkdir()
    return {"train": [write_text(folder / "out/e.csv", "customer,item\n1,1\n")], "overwrite": True}


def fifo(folder: Path) -> dict[str, Any]:
    os.mkfifo(folder / "e.csv")
    return {"train": [folder / "e.csv"]}


def fifo_in_a_pattern(folder: Path) -> dict[str, Any]:
    write_text(folder / "d.csv", GOOD)
    return fifo(folder) | {"train": [f"{folder}/*.csv"]}


def parquet_of_long_texts(folder: Path) -> dict[str, Any]:
    """Return a file of a few kilobytes with 2 GB of text: dictionaries hold each value once."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 2_000_000]))
    return {"train": [write_parquet(folder / "e.parquet", customer=list(range(1000)), item=text)]}


MOSTLY_BAD = "customer,item,w\n" + "".join(f"1,{n},{'yes' if n % 4 else 1}\n" for n in range(400))
GOOD = "customer,item,w,t\n1,1,1,5\n"


REJECTED: dict[str, Case] = {
    "missing file": lambda folder: {"train": [folder / "no.csv"]},
    "pattern without match": lambda folder: {"train": [f"{folder}/*.csv"]},
    "a FIFO": fifo,
    "a FIFO that a pattern matches": fifo_in_a_pattern,
    "folder": lambda folder: {"train": [folder]},
    "remote": lambda _: {"train": ["ftp://bucket/e.parquet"]},
    "unknown file ending": csv_case(GOOD, "e.txt"),
    "a file name that is not UTF-8": csv_case(GOOD, os.fsdecode(b"e\xff.csv")),
    "file given twice": same_file_twice,
    "input file inside --out": output_above_input,
    "truncated Parquet": truncated_parquet,
    "corrupt Parquet": corrupt_parquet,
    "not a Parquet file": csv_case(GOOD, "e.parquet"),
    "missing column, CSV": csv_case("user,item\n1,1\n"),
    "missing column, Parquet": parquet_case(a=[1], b=[2]),
    "columns that differ in case": parquet_case(customer=[1], Customer=[2], item=[1]),
    "duplicate column": csv_case("customer,item,item\n1,1,2\n"),
    "empty file": csv_case(""),
    "too few fields": csv_case("customer,item\n1,1\n2\n"),
    "too many fields": csv_case("customer,item\n1,1\n2,3,4\n"),
    "unclosed quote": csv_case('customer,item\n1,"1\n2,3\n'),
    "not UTF-8": csv_case(b"customer,item\n1,a\n2,caf\xe9\n"),
    "UTF-16": csv_case(GOOD.encode("utf-16")),
    "UTF-16 without a byte order mark": csv_case(GOOD.encode("utf-16-le")),
    "a Parquet file that decodes to too much": parquet_of_long_texts,
    "too many bad lines": csv_case(MOSTLY_BAD, weight="w", on_bad_line="skip"),
    "an ID above 4 KiB": csv_case(f"customer,item\n1,{'x' * 4097}\n"),
    "carriage return inside a line": csv_case("customer\titem\n1\ta\rb\n2\tc\n", "e.tsv"),
    "empty id, CSV": csv_case('customer,item\n1,"a\nb"\n\n2,\n'),
    "null id, Parquet": parquet_case(customer=[1, None], item=[1, 1]),
    "empty id, Parquet": parquet_case(customer=["", "a"], item=[1, 1]),
    "negative id": csv_case("customer,item\n1,1\n2,-5\n"),
    "id beyond int64": parquet_case(customer=[1, 2], item=pa.array([1, 2**64 - 1], pa.uint64())),
    "fractional ID": parquet_case(customer=[1.5], item=[1]),
    "binary id": parquet_case(customer=[b"x"], item=[1]),
    "text where --id-type integer": csv_case("customer,item\n1,1\nx,2\n", id_type="integer"),
    "ids of two types": two_files("customer,item\n1,1\n", "customer,item\n1,b\n"),
    "text as weight": csv_case("customer,item,w\n1,1,2\n1,2,x\n", weight="w"),
    "decimal comma in a weight": csv_case("customer;item;w\n1;1;2\n1;2;1.234,5\n", weight="w"),
    "missing weight": csv_case("customer,item,w\n1,1,\n", weight="w"),
    "null weight": parquet_case({"weight": "w"}, customer=[1], item=[1], w=pa.array([None], pa.float32())),
    "NaN weight": parquet_case({"weight": "w"}, customer=[1], item=[1], w=[float("nan")]),
    "infinite weight": csv_case("customer,item,w\n1,1,inf\n", weight="w"),
    "huge weight": csv_case("customer,item,w\n1,1,1e300\n", weight="w"),
    "date as weight": parquet_case({"weight": "w"}, customer=[1], item=[1], w=[dt.date(2020, 1, 1)]),
    "unknown event type": csv_case(
        "customer,item,e\n1,1,play\n1,2,ban\n", event="e", event_weights={"play": 1.0, "skip": 0.0}
    ),
    "missing event type": csv_case("customer,item,e\n1,1,\n", event="e", event_weights={"play": 1.0}),
    "text as timestamp": csv_case("customer,item,t\n1,1,2020-01-01\n1,2,noon\n", timestamp="t"),
    "timestamps of several formats": csv_case("customer,item,t\n1,1,2020-01-01\n1,2,31/12/2020\n", timestamp="t"),
    "timestamps of one other format": csv_case(
        "customer,item,t\n1,1,1/2/2020 5:30 PM\n1,2,3/4/2020 6:00 AM\n", timestamp="t"
    ),
    "dates and numbers as timestamps": csv_case("customer,item,t\n1,1,1700000000\n1,2,2020-01-01\n", timestamp="t"),
    "timestamp in none of the given formats": csv_case(
        "customer,item,t\n1,1,2020-01-01\n1,2,noon\n", timestamp="t", timestamp_format=["iso", "%d.%m.%Y"]
    ),
    "unknown timestamp format": csv_case(GOOD, timestamp="t", timestamp_format=["epoch"]),
    "standard input without --format": lambda _: {"train": ["-"]},
    "a line above the limit": csv_case(f"customer,item\n1,{'2' * (3 << 20)}\n3,4\n"),
    "a line that is not a JSON object": csv_case('{"customer": 1, "item": 1}\n[1, 2]\n', "e.jsonl"),
    "a JSON line with half a surrogate pair": csv_case(
        '{"customer": 1, "item": 1}\n{"customer": "\\ud800x", "item": 1}\n', "e.jsonl"
    ),
    "missing column, JSON": csv_case('{"user": 1, "item": 1}\n', "e.jsonl"),
    "missing column of a joined ID": csv_case("customer,artist\n1,1\n", item="item=artist+title"),
    "missing timestamp": csv_case("customer,item,t\n1,1,\n", timestamp="t"),
    "timestamps of two types": two_files(
        "customer,item,t\n1,1,5\n", "customer,item,t\n1,1,2020-01-01\n", timestamp="t"
    ),
    "fractional timestamp": parquet_case({"timestamp": "t"}, customer=[1], item=[1], t=[1.5]),
    "adjacency text with a word": lightgcn_case("0 1\n\n1 2 x3\n"),
    "adjacency text with a negative number": lightgcn_case("0 1\n1 -2\n"),
    "adjacency text with binary data": lightgcn_case(b"0 1\n1 2\x013\n"),
    "adjacency text with --weight": lightgcn_case("0 1\n", weight="plays"),
    "adjacency text with a column name": lightgcn_case("0 1\n", query="customer=uid"),
    "no interactions": csv_case("customer,item\n"),
    "no interactions in adjacency text": lightgcn_case("1\n2\n"),
    "only events of weight 0": csv_case("customer,item,w\n1,1,0\n", weight="w"),
    "no interactions in --test": train_and_empty_test,
    "--hold-out last-N without --timestamp": csv_case(GOOD, hold_out="last-1"),
    "--hold-out-gap without a hold-out by time": csv_case(
        "customer,item,t\n1,1,5\n1,2,6\n", hold_out="last-1", hold_out_gap="1d", timestamp="t"
    ),
    "a gap in days of timestamps in milliseconds": csv_case(
        "customer,item,t\n1,1,5\n1,2,1577836800000\n", hold_out="after:50", hold_out_gap="1d", timestamp="t"
    ),
    "--hold-out after without --timestamp": csv_case(GOOD, hold_out_test="after:5"),
    "--hold-out with a file for the same split": lambda folder: {
        **csv_case(GOOD)(folder),
        "test": [folder / "e.csv"],
        "hold_out": "random:0.1",
    },
    "--hold-out with --hold-out-valid or --hold-out-test": csv_case(
        GOOD, hold_out="random:0.1", hold_out_valid="random:0.1"
    ),
    "a hold-out without interactions": csv_case("customer,item,t\n1,1,5\n1,2,6\n", hold_out="after:50", timestamp="t"),
    "a date as hold-out of timestamps in milliseconds": csv_case(
        "customer,item,t\n1,1,5\n1,2,1577836800000\n", hold_out="after:2020-01-01", timestamp="t"
    ),
    "missing file in --names": csv_case(GOOD, names={"item": NamesFile("no.csv", "a", "b")}),
    "missing column in --names": lambda folder: {
        **csv_case(GOOD)(folder),
        "names": {"item": NamesFile(folder / "e.csv", "id", "w")},
    },
    "--names without a known ID": lambda folder: {
        **csv_case(GOOD)(folder),
        "names": {"item": NamesFile(write_text(folder / "n.csv", "id,name\n77,x\n"), "id", "name")},
    },
}


@pytest.mark.parametrize("name", REJECTED)
def test_bad_input_is_rejected_in_one_line_and_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    options = REJECTED[name](tmp_path)
    before = entries(tmp_path)
    with pytest.raises(InputError) as caught:
        prepare(PrepareOptions.of(out=tmp_path / "out", **options))
    message = documented(name, str(caught.value))
    assert "\n" not in message
    assert "Error:" not in message.partition(":")[0]
    assert entries(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "begin", "problem"),
    [
        ("e.csv", "customer,item\n1,1\n2,", "line 3: the line is longer than"),
        ("e.csv.gz", "customer,item\n1,1\n2,", "the item id '3+' of column 'item' is longer than"),
        ("e.csv.gz", "customer,", "line 1: the line is longer than"),
        ("e.jsonl", '{"customer": 1, "item": 1}\n{"customer": ', "line 2: the line is longer than"),
        ("e.jsonl.gz", '{"customer": ', "line 1: the line is longer than"),
    ],
)
def test_last_line_without_an_end_is_rejected(tmp_path: Path, name: str, begin: str, problem: str) -> None:
    content = begin.encode() + b"3" * (33 << 20)
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    with pytest.raises(InputError, match=problem):
        prepare(PrepareOptions.of(out=tmp_path / "out", train=[tmp_path / name]))


def test_compressed_adjacency_text_needs_no_memory_for_the_longest_line(tmp_path: Path) -> None:
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"1 2 3\n"))
    prepare(PrepareOptions.of(out=tmp_path / "out", train=[tmp_path / "e.txt.gz"], format="lightgcn", memory=1))
    assert (tmp_path / "out" / "manifest.json").exists()
