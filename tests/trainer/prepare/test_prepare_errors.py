"""Rejected input of ``prepare``: each message names the file, the place and the fix, and nothing is written."""

import datetime as dt
import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
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


def parquet_of_long_texts(folder: Path) -> dict[str, Any]:
    """Return a file of a few kilobytes with 2 GB of text: dictionaries hold each value once."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 2_000_000]))
    return {"train": [write_parquet(folder / "e.parquet", customer=list(range(1000)), item=text)]}


MOSTLY_BAD = "customer,item,w\n" + "".join(f"1,{n},{'yes' if n % 4 else 1}\n" for n in range(400))
GOOD = "customer,item,w,t\n1,1,1,5\n"


def with_features(columns: str) -> Case:
    """Return events with features of a file that has other IDs."""

    def write(folder: Path) -> dict[str, Any]:
        write_text(folder / "f.csv", "id,w,loud\n77,x,1\n")
        write_parquet(folder / "g.parquet", id=[1], loud=[0.5])
        return {**csv_case(GOOD)(folder), "features": f"item={folder}/{columns}"}

    return write


REJECTED: list[tuple[str, Case]] = [
    ("leaves no interaction", csv_case("customer,item\n1,1\n1,2\n2,3\n", min_count={"customer": 3})),
    ("too large", parquet_case({"weight": "w", "duplicates": "sum"}, customer=[1, 1], item=[1, 1], w=[3e38, 3e38])),
    ("has no column 'genre'", with_features("e.csv:item:genre")),
    ("has a value of 'w' for none of the ids of", with_features("f.csv:id:w")),
    ("column 'loud' holds fractional numbers", with_features("g.parquet:id:loud")),
    ("no such file; check the path (the current folder is", lambda folder: {"train": [folder / "no.csv"]}),
    ("matches no file; check the pattern (the current folder is", lambda folder: {"train": [f"{folder}/*.csv"]}),
    ("is a FIFO, socket, or device", fifo),
    ("is a folder; expected files: try", lambda folder: {"train": [folder]}),
    (
        "ftp://bucket/e.parquet: expected a local file or s3://BUCKET/KEY",
        lambda _: {"train": ["ftp://bucket/e.parquet"]},
    ),
    ("the extension '.txt' has no known format", csv_case(GOOD, "e.txt")),
    ("the name of the file is not UTF-8", csv_case(GOOD, os.fsdecode(b"e\xff.csv"))),
    ("was already given in", same_file_twice),
    ("which would be replaced", output_above_input),
    ("is not a readable Parquet file", truncated_parquet),
    ("cannot be read as Parquet, since it is corrupt or truncated", corrupt_parquet),
    ("is not a readable Parquet file", csv_case(GOOD, "e.parquet")),
    ("has no column 'customer", csv_case("user,item\n1,1\n")),
    ("no column 'item'; its columns are: User Id, Song", csv_case("User Id;Song\n1;2\n", query="customer=User Id")),
    (
        "has the columns 'customer' and 'Customer', which differ only in",
        parquet_case(customer=[1], Customer=[2], item=[1]),
    ),
    ("columns 'item'; rename all but one", csv_case("customer,item,item\n1,1,2\n")),
    ("is empty; expected a header line with the names of the columns", csv_case("")),
    ("has 1 field, but the header has 2", csv_case("customer,item\n1,1\n2\n")),
    ("is not UTF-8 or not in the encoding that was named", csv_case(GOOD.encode("utf-16"))),
    ("line 2: is not UTF-8", csv_case("customer,item\nJosé,1\n".encode("latin-1"))),
    ("line 2: is not UTF-8 or not in the encoding", csv_case(b"customer,item\n\x81,1\n", encoding="cp1252")),
    ("line 2: is not UTF-8", csv_case(b'{"customer": 1, "item": 1}\n{"item": "\x81"}', "e.jsonl", encoding="cp1252")),
    ("cannot be read as utf-16 ('utf-16-", csv_case(GOOD.encode("utf-16")[:-1], encoding="utf-16")),
    ("cannot be read as utf-16", csv_case(b"x", encoding="utf-16")),
    ("has no column 'customer'", csv_case(GOOD, encoding="utf-16-le")),
    ("has no column 'customer'", csv_case(GOOD, delimiter=";")),
    ("' of column 'customer' has a control character", csv_case("customer,item\n€,1\n", encoding="latin-1")),
    (
        "line 3: the weight '1.234' of column",
        csv_case("customer;item;w\n1;1;1,5\n1;2;1.234\n", weight="w", decimal=","),
    ),
    (
        "has no column 'user.i' (did you mean 'user.id'?)",
        csv_case('{"user": {"id": 1}, "item": 2}', "e.jsonl", query="customer=user.i"),
    ),
    ("has no column 'user.i'", parquet_case({"query": "customer=user.i"}, user=[{"id": 1}], item=[1])),
    (
        "has 2 columns 'user.id'",
        csv_case('{"user": {"id": 1}, "user.id": 3, "item": 2}', "e.jsonl", query="customer=user.id"),
    ),
    (
        "has the columns 'user' and 'User', which differ only in case",
        parquet_case({"query": "customer=user.id"}, user=[{"id": 1}], User=[2], item=[1]),
    ),
    ("decodes to", parquet_of_long_texts),
    ("rows would be left out", csv_case(MOSTLY_BAD, weight="w", on_bad_line="skip")),
    ("of column 'item' is longer than 4,096 bytes", csv_case(f"customer,item\n1,{'x' * 4097}\n")),
    ("the query id of column 'customer' is missing or empty", parquet_case(customer=[1, None], item=[1, 1])),
    ("the item id '-5' of column 'item' is negative", csv_case("customer,item\n1,1\n2,-5\n")),
    (
        "the item id '18446744073709551615' of column 'item' is not a",
        parquet_case(customer=[1, 2], item=pa.array([1, 2**64 - 1], pa.uint64())),
    ),
    ("holds fractional numbers", parquet_case(customer=[1.5], item=[1])),
    ("column 'customer' has the type binary", parquet_case(customer=[b"x"], item=[1])),
    (
        "the query id 'x' of column 'customer' is not a plain 64-bit integer",
        csv_case("customer,item\n1,1\nx,2\n", id_type="integer"),
    ),
    ("column 'item' holds strings, but", two_files("customer,item\n1,1\n", "customer,item\n1,b\n")),
    ("the weight '1,5' of column 'w' is not allowed", csv_case("customer;item;w\n1;1;2\n1;2;1,5\n", weight="w")),
    (
        "the weight of column 'w' is missing",
        parquet_case({"weight": "w"}, customer=[1], item=[1], w=pa.array([None], pa.float32())),
    ),
    (
        "the weight 'nan' of column 'w' is not allowed",
        parquet_case({"weight": "w"}, customer=[1], item=[1], w=[float("nan")]),
    ),
    (
        "the weight '1e300' of column 'w' is not allowed",
        csv_case("customer,item,w\n1,1,1e300\n", weight="w"),
    ),
    (
        "the weight '2020-01-01' of column 'w' is not allowed",
        parquet_case({"weight": "w"}, customer=[1], item=[1], w=[dt.date(2020, 1, 1)]),
    ),
    (
        "the event 'ban' of column 'e' has no weight",
        csv_case("customer,item,e\n1,1,play\n1,2,ban\n", event="e", event_weights={"play": 1.0, "skip": 0.0}),
    ),
    ("the event of column 'e' is missing", csv_case("customer,item,e\n1,1,\n", event="e", event_weights={"play": 1.0})),
    (
        "the timestamp 'noon' of column 't' is not a timestamp",
        csv_case("customer,item,t\n1,1,2020-01-01\n1,2,noon\n", timestamp="t"),
    ),
    (
        "the timestamp '2020-01-01' of column 't' is not an integer, as others are",
        csv_case("customer,item,t\n1,1,2020-01-01\n1,2,7\n", timestamp="t"),
    ),
    (
        "the timestamp '1.5' of column 't' is not an integer",
        csv_case("customer,item,t\n1,1,7\n1,2,1.5\n", timestamp="t"),
    ),
    (
        "the timestamp 'noon' of column 't' has none of the formats of",
        csv_case("customer,item,t\n1,1,2020-01-01\n1,2,noon\n", timestamp="t", timestamp_format=["iso", "%d.%m.%Y"]),
    ),
    (
        "epoch: expected a format of strptime, such as '%d/%m/%Y %H:%M'",
        csv_case(GOOD, timestamp="t", timestamp_format=["epoch"]),
    ),
    ("the line is longer than 2,097,152 characters", csv_case(f"customer,item\n1,{'2' * (3 << 20)}\n3,4\n")),
    (
        "is not a JSON object",
        csv_case('{"customer": 1, "item": 1}\n{"customer": "\\ud800x", "item": 1}\n', "e.jsonl"),
    ),
    ("the timestamp of column 't' is missing", csv_case("customer,item,t\n1,1,\n", timestamp="t")),
    (
        "column 't' holds dates, but",
        two_files("customer,item,t\n1,1,5\n", "customer,item,t\n1,1,2020-01-01\n", timestamp="t"),
    ),
    ("column 't' holds fractional numbers", parquet_case({"timestamp": "t"}, customer=[1], item=[1], t=[1.5])),
    ("line 3: expected 'user item item …', non-negative integers", lightgcn_case("0 1\n\n1 2 x3\n")),
    ("expected 'user item item …'", lightgcn_case(b"0 1\n1 2\x013\n")),
    ("line 2: expected 'user item item …'", lightgcn_case("0 1\n1 2\v3\n")),
    ("a lightgcn file has no column 'plays", lightgcn_case("0 1\n", weight="plays")),
    ("the files given hold no interaction", csv_case("customer,item\n")),
    ("the files hold no interaction with a weight above 0", csv_case("customer,item,w\n1,1,0\n", weight="w")),
    ("the files hold no interaction with a weight above 0", train_and_empty_test),
    ("last-1: requires the time of each event", csv_case(GOOD, hold_out="last-1")),
    (
        "1d: comes before what is held out by time, and nothing is",
        csv_case("customer,item,t\n1,1,5\n1,2,6\n", hold_out="last-1", hold_out_gap="1d", timestamp="t"),
    ),
    (
        "1d: is counted in seconds, but the timestamps reach",
        csv_case("customer,item,t\n1,1,5\n1,2,1577836800000\n", hold_out="after:50", hold_out_gap="1d", timestamp="t"),
    ),
    ("after:5: requires the time of each event", csv_case(GOOD, hold_out_test="after:5")),
    (
        "random:0.1: test comes from",
        lambda folder: {
            **csv_case(GOOD)(folder),
            "test": [folder / "e.csv"],
            "hold_out": "random:0.1",
        },
    ),
    ("random:0.1: cannot be combined with", csv_case(GOOD, hold_out="random:0.1", hold_out_valid="random:0.1")),
    (
        "after:9: is no earlier than hold_out_test after:6, which leaves valid nothing; give valid an earlier time",
        csv_case("customer,item,t\n1,1,5\n1,2,9\n", hold_out_valid="after:9", hold_out_test="after:6", timestamp="t"),
    ),
    (
        "after:50: takes no interaction for test (timestamps run from 5",
        csv_case("customer,item,t\n1,1,5\n1,2,6\n", hold_out="after:50", timestamp="t"),
    ),
    (
        "after:2020-01-01: a date is compared in seconds, but the",
        csv_case("customer,item,t\n1,1,5\n1,2,1577836800000\n", hold_out="after:2020-01-01", timestamp="t"),
    ),
    ("item no.csv: no such file", csv_case(GOOD, names={"item": NamesFile("no.csv", "a", "b")})),
    (
        "has no column 'id",
        lambda folder: {
            **csv_case(GOOD)(folder),
            "names": {"item": NamesFile(folder / "e.csv", "id", "w")},
        },
    ),
    (
        "has a name for none of the ids of the events (column 'id' holds",
        lambda folder: {
            **csv_case(GOOD)(folder),
            "names": {"item": NamesFile(write_text(folder / "n.csv", "id,name\n77,x\n"), "id", "name")},
        },
    ),
]


@pytest.mark.parametrize(("problem", "case"), REJECTED)
def test_bad_input_is_rejected_in_one_line_and_leaves_nothing_behind(tmp_path: Path, problem: str, case: Case) -> None:
    options = case(tmp_path)
    before = entries(tmp_path)
    with pytest.raises(InputError) as caught:
        prepare(PrepareOptions.of(out=tmp_path / "out", **options))
    message = str(caught.value)
    assert problem in message
    assert "\n" not in message
    assert "Error:" not in message.partition(":")[0]
    assert entries(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "begin", "problem"),
    [
        ("e.csv", "customer,item\n1,1\n2,", "line 3: the line is longer than"),
        ("e.csv.gz", "customer,item\n1,1\n2,", "the item id '3+' of column 'item' is longer than"),
        ("e.jsonl", '{"customer": 1, "item": 1}\n{"customer": ', "line 2: the line is longer than"),
    ],
)
def test_last_line_without_an_end_is_rejected(tmp_path: Path, name: str, begin: str, problem: str) -> None:
    content = begin.encode() + b"3" * (33 << 20)
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    with pytest.raises(InputError, match=problem):
        prepare(PrepareOptions.of(out=tmp_path / "out", train=[tmp_path / name]))
