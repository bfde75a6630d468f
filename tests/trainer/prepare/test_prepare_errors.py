"""Rejected input of ``prepare``: each message names the file, the place and the fix, and nothing is written."""

import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from error_table import documented
from preparing import entries, write_parquet, write_text

from crossfade.base.errors import InputError
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.prepare.vocabulary_tables import NamesFile

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


REJECTED: dict[str, tuple[Case, list[str]]] = {
    "missing file": (lambda folder: {"train": [folder / "no.csv"]}, ["--train", "no.csv", "no such file"]),
    "pattern without match": (lambda folder: {"train": [f"{folder}/*.csv"]}, ["--train", "*.csv", "matches no file"]),
    "a FIFO": (fifo, ["--train", "e.csv", "FIFO", "--events -"]),
    "folder": (lambda folder: {"train": [folder]}, ["is a folder", "*.parquet"]),
    "remote": (lambda _: {"train": ["ftp://bucket/e.parquet"]}, ["ftp://bucket/e.parquet", "s3://BUCKET/KEY"]),
    "unknown file ending": (csv_case(GOOD, "e.txt"), ["e.txt", "'.txt'", "--format", ".parquet"]),
    "no files": (lambda _: {"train": []}, ["--train"]),
    "file given twice": (same_file_twice, ["--test", "e.csv", "already given in --train"]),
    "input file inside --out": (output_above_input, ["e.csv", "inside --out"]),
    "truncated Parquet": (truncated_parquet, ["e.parquet", "not a readable Parquet file"]),
    "corrupt Parquet": (corrupt_parquet, ["e.parquet", "cannot be read as Parquet", "corrupt"]),
    "not a Parquet file": (csv_case(GOOD, "e.parquet"), ["e.parquet", "not a readable Parquet file"]),
    "missing column, CSV": (csv_case("user,item\n1,1\n"), ["e.csv", "no column 'customer'", "user, item"]),
    "missing column, Parquet": (parquet_case(a=[1], b=[2]), ["e.parquet", "no column 'customer'", "a, b"]),
    "columns that differ in case": (
        parquet_case(customer=[1], Customer=[2], item=[1]),
        ["'Customer'", "differ only in case"],
    ),
    "duplicate column": (csv_case("customer,item,item\n1,1,2\n"), ["2 columns 'item'"]),
    "empty file": (csv_case(""), ["e.csv", "is empty", "header"]),
    "too few fields": (csv_case("customer,item\n1,1\n2\n"), ["e.csv, line 3", "1 field", "header has 2"]),
    "too many fields": (csv_case("customer,item\n1,1\n2,3,4\n"), ["e.csv, line 3", "3 fields", "header has 2"]),
    "unclosed quote": (csv_case('customer,item\n1,"1\n2,3\n'), ["e.csv, line 2", "quote opens"]),
    "not UTF-8": (csv_case(b"customer,item\n1,a\n2,caf\xe9\n"), ["e.csv, line 3", "not UTF-8", "iconv"]),
    "UTF-16": (csv_case(GOOD.encode("utf-16")), ["e.csv", "iconv -f UTF-16 "]),
    "UTF-16 without a byte order mark": (csv_case(GOOD.encode("utf-16-le")), ["e.csv", "iconv -f UTF-16LE "]),
    "a Parquet file that decodes to too much": (parquet_of_long_texts, ["2,000,0", "1,073,741,824"]),
    "too many bad lines": (
        csv_case(MOSTLY_BAD, weight="w", on_bad_line="skip"),
        ["300 of 400 rows", "75.0%", "lines 3 'yes', 4 'yes'", "--max-bad 75%"],
    ),
    "an ID above 4 KiB": (csv_case(f"customer,item\n1,{'x' * 4097}\n"), ["line 2", "4,096 bytes"]),
    "carriage return inside a line": (csv_case("customer\titem\n1\ta\rb\n2\tc\n", "e.tsv"), ["e.tsv, line 2", "tr -d"]),
    "empty id, CSV": (
        csv_case('customer,item\n1,"a\nb"\n\n2,\n'),
        ["e.csv, line 5", "item id of column 'item'", "empty"],
    ),
    "null id, Parquet": (parquet_case(customer=[1, None], item=[1, 1]), ["e.parquet, row 2", "query id", "missing"]),
    "empty id, Parquet": (parquet_case(customer=["", "a"], item=[1, 1]), ["e.parquet, row 1", "query id", "empty"]),
    "negative id": (csv_case("customer,item\n1,1\n2,-5\n"), ["e.csv, line 3", "'-5'", "negative", "at least 0"]),
    "id beyond int64": (
        parquet_case(customer=[1, 2], item=pa.array([1, 2**64 - 1], pa.uint64())),
        ["e.parquet, row 2", "'18446744073709551615'", "64-bit"],
    ),
    "fractional ID": (
        parquet_case(customer=[1.5], item=[1]),
        ["column 'customer'", "fractional", "integers or strings"],
    ),
    "binary id": (parquet_case(customer=[b"x"], item=[1]), ["column 'customer'", "type binary"]),
    "text where --id-type integer": (
        csv_case("customer,item\n1,1\nx,2\n", id_type="integer"),
        ["e.csv, line 3", "'x'", "query id", "--id-type string"],
    ),
    "ids of two types": (
        two_files("customer,item\n1,1\n", "customer,item\n1,b\n"),
        ["b.csv", "'item'", "strings", "a.csv", "integers", "--id-type string"],
    ),
    "text as weight": (
        csv_case("customer,item,w\n1,1,2\n1,2,x\n", weight="w"),
        ["e.csv, line 3", "'x'", "'w'", "number"],
    ),
    "decimal comma in a weight": (
        csv_case("customer;item;w\n1;1;2\n1;2;1.234,5\n", weight="w"),
        ["e.csv, line 3", "'1.234,5'", "'w' has a comma; write it with a decimal point"],
    ),
    "missing weight": (csv_case("customer,item,w\n1,1,\n", weight="w"), ["e.csv, line 2", "weight", "missing"]),
    "null weight": (
        parquet_case({"weight": "w"}, customer=[1], item=[1], w=pa.array([None], pa.float32())),
        ["row 1", "missing"],
    ),
    "NaN weight": (
        parquet_case({"weight": "w"}, customer=[1], item=[1], w=[float("nan")]),
        ["row 1", "'nan'", "finite"],
    ),
    "infinite weight": (csv_case("customer,item,w\n1,1,inf\n", weight="w"), ["line 2", "'inf'", "finite"]),
    "huge weight": (csv_case("customer,item,w\n1,1,1e300\n", weight="w"), ["line 2", "'1e300'", "too large"]),
    "date as weight": (
        parquet_case({"weight": "w"}, customer=[1], item=[1], w=[dt.date(2020, 1, 1)]),
        ["row 1", "is a date", "number"],
    ),
    "unknown event type": (
        csv_case("customer,item,e\n1,1,play\n1,2,ban\n", event="e", event_weights={"play": 1.0, "skip": 0.0}),
        ["e.csv, line 3", "'ban'", "play, skip"],
    ),
    "missing event type": (
        csv_case("customer,item,e\n1,1,\n", event="e", event_weights={"play": 1.0}),
        ["line 2", "event", "missing"],
    ),
    "--event without --event-weights": (csv_case(GOOD, event="w"), ["--event-weights", "together"]),
    "invalid event weight": (csv_case(GOOD, event="w", event_weights={"a": float("inf")}), ["a=inf", "finite"]),
    "--weight with --event": (
        csv_case(GOOD, weight="w", event="t", event_weights={"5": 1.0}),
        ["--weight and --event"],
    ),
    "text as timestamp": (
        csv_case("customer,item,t\n1,1,2020-01-01\n1,2,noon\n", timestamp="t"),
        ["e.csv, line 3", "'noon'", "timestamp"],
    ),
    "timestamps of several formats": (
        csv_case("customer,item,t\n1,1,2020-01-01\n1,2,31/12/2020\n", timestamp="t"),
        ["line 2", "line 3", "'2020-01-01'", "'31/12/2020'", "--timestamp-format"],
    ),
    "timestamps of one other format": (
        csv_case("customer,item,t\n1,1,1/2/2020 5:30 PM\n1,2,3/4/2020 6:00 AM\n", timestamp="t"),
        ["line 2", "'%d/%m/%Y %I:%M %p'"],
    ),
    "dates and numbers as timestamps": (
        csv_case("customer,item,t\n1,1,1700000000\n1,2,2020-01-01\n", timestamp="t"),
        ["'1700000000'", "'2020-01-01'", "--timestamp-format"],
    ),
    "timestamp in none of the given formats": (
        csv_case("customer,item,t\n1,1,2020-01-01\n1,2,noon\n", timestamp="t", timestamp_formats=["iso", "%d.%m.%Y"]),
        ["e.csv, line 3", "'noon'", "iso, %d.%m.%Y"],
    ),
    "unknown timestamp format": (
        csv_case(GOOD, timestamp="t", timestamp_formats=["epoch"]),
        ["--timestamp-format epoch", "strptime", "epoch-ms"],
    ),
    "--timestamp-format without --timestamp": (csv_case(GOOD, timestamp_formats=["iso"]), ["--timestamp"]),
    "delimiter of two characters": (csv_case(GOOD, delimiter="::"), ["--delimiter '::'", "one character"]),
    "standard input without --format": (lambda _: {"train": ["-"]}, ["--train -", "--format"]),
    "a line that is not a JSON object": (
        csv_case('{"customer": 1, "item": 1}\n[1, 2]\n', "e.jsonl"),
        ["e.jsonl, line 2", "JSON object"],
    ),
    "missing column, JSON": (csv_case('{"user": 1, "item": 1}\n', "e.jsonl"), ["no column 'customer'", "user, item"]),
    "missing column of a joined ID": (
        csv_case("customer,artist\n1,1\n", item_column="artist+title"),
        ["no column 'title'", "customer, artist"],
    ),
    "missing timestamp": (csv_case("customer,item,t\n1,1,\n", timestamp="t"), ["line 2", "timestamp", "missing"]),
    "timestamps of two types": (
        two_files("customer,item,t\n1,1,5\n", "customer,item,t\n1,1,2020-01-01\n", timestamp="t"),
        ["b.csv", "dates", "a.csv", "integers"],
    ),
    "fractional timestamp": (parquet_case({"timestamp": "t"}, customer=[1], item=[1], t=[1.5]), ["'t'", "fractional"]),
    "adjacency text with a word": (
        lightgcn_case("0 1\n\n1 2 x3\n"),
        ["e.txt, line 3", "'x3'", "non-negative integers"],
    ),
    "adjacency text with a negative number": (lightgcn_case("0 1\n1 -2\n"), ["e.txt, line 2", "'-2'"]),
    "adjacency text with binary data": (lightgcn_case(b"0 1\n1 2\x013\n"), ["e.txt, line 2", "non-negative integers"]),
    "adjacency text with --weight": (lightgcn_case("0 1\n", weight="plays"), ["lightgcn", "'plays'", "--weight"]),
    "adjacency text with a column name": (lightgcn_case("0 1\n", query_column="uid"), ["lightgcn", "'uid'", "--query"]),
    "no interactions": (csv_case("customer,item\n"), ["no interaction"]),
    "no interactions in adjacency text": (lightgcn_case("1\n2\n"), ["no interaction"]),
    "only events of weight 0": (
        csv_case("customer,item,w\n1,1,0\n", weight="w"),
        ["--train", "no interaction", "above 0"],
    ),
    "no interactions in --test": (train_and_empty_test, ["--test", "no interaction"]),
    "--hold-out last-N without --timestamp": (csv_case(GOOD, hold_out="last-1"), ["--hold-out last-1", "--timestamp"]),
    "--hold-out after without --timestamp": (
        csv_case(GOOD, hold_out_test="after:5"),
        ["--hold-out-test after:5", "--timestamp"],
    ),
    "--hold-out with a file for the same split": (
        lambda folder: {**csv_case(GOOD)(folder), "test": [folder / "e.csv"], "hold_out": "random:0.1"},
        ["--hold-out random:0.1", "--test", "--hold-out-valid"],
    ),
    "--hold-out with --hold-out-valid or --hold-out-test": (
        csv_case(GOOD, hold_out="random:0.1", hold_out_valid="random:0.1"),
        ["--hold-out-valid"],
    ),
    "a hold-out without interactions": (
        csv_case("customer,item,t\n1,1,5\n1,2,6\n", hold_out="after:50", timestamp="t"),
        ["after:50", "no interaction", "5 to 6"],
    ),
    "a date as hold-out of timestamps in milliseconds": (
        csv_case("customer,item,t\n1,1,5\n1,2,1577836800000\n", hold_out="after:2020-01-01", timestamp="t"),
        ["after:2020-01-01", "1577836800000", "INTEGER"],
    ),
    "missing file in --names": (
        csv_case(GOOD, names={"item": NamesFile("no.csv", "a", "b")}),
        ["--names item", "no.csv"],
    ),
    "unknown entity in --names": (
        csv_case(GOOD, names={"song": NamesFile("no.csv", "a", "b")}),
        ["song", "'customer' or 'item'"],
    ),
    "missing column in --names": (
        lambda folder: {**csv_case(GOOD)(folder), "names": {"item": NamesFile(folder / "e.csv", "id", "w")}},
        ["e.csv", "no column 'id'"],
    ),
    "--names without a known ID": (
        lambda folder: {
            **csv_case(GOOD)(folder),
            "names": {"item": NamesFile(write_text(folder / "n.csv", "id,name\n77,x\n"), "id", "name")},
        },
        ["n.csv", "none of the ids", "--names"],
    ),
    "a path as entity name": (csv_case(GOOD, query="../x", query_column="customer"), ["--query ../x", "entity"]),
    "a reserved entity name": (csv_case(GOOD, item="weight"), ["--item weight", "entity"]),
    "the same name for both entities": (csv_case(GOOD, query="item"), ["different names"]),
    "seed": (csv_case(GOOD, seed=-1), ["--seed -1"]),
}


@pytest.mark.parametrize("name", REJECTED)
def test_bad_input_is_rejected_in_one_line_and_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    case, expected = REJECTED[name]
    options = case(tmp_path)
    before = entries(tmp_path)
    with pytest.raises(InputError) as caught:
        prepare(PrepareOptions(out=tmp_path / "out", **options))
    message = documented(name, str(caught.value))
    for fragment in expected:
        assert fragment in message
    assert "\n" not in message
    assert "Error:" not in message.partition(":")[0]
    assert entries(tmp_path) == before
