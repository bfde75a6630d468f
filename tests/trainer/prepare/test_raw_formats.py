"""Reading raw files: CSV, TSV, JSON, adjacency text and Parquet, compressed and piped; ids, weights and timestamps."""

import csv
import datetime as dt
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from preparing import (
    interactions,
    prepare_files,
    vocabulary,
    write_parquet,
    write_text,
)

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.prepare import raw_files
from crossfade.trainer.prepare.database import execute_on
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.summary import format_summary

pytestmark = pytest.mark.slow


def test_csv_fields_with_quotes_and_line_ends_match_csv_module(tmp_path: Path) -> None:
    ids = [
        'say "hi", you',
        "two\nlines",
        "  padded ",
        "Ünïcodé ☃",
        "a\ttab",
        "#hash",
        "\N{NO-BREAK SPACE}x\N{LINE SEPARATOR}y",
    ]
    train = tmp_path / "e.csv"
    with train.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("x", "item", "customer"), *((n, n + 5, text) for n, text in enumerate(ids))])
    prepare_files(tmp_path / "out", train)
    assert {row[0] for row in interactions(tmp_path / "out", "train")} == set(ids)


def test_tsv_quotes_and_backslashes_are_plain_characters(tmp_path: Path) -> None:
    ids = ['"Weird Al" Yankovic', "Royce da 5'9\"", '"', "back\\slash", "c,omma", "\N{NEXT LINE}nel"]
    lines = ["customer\titem", *(f"{number}\t{text}" for number, text in enumerate(ids))]
    for newline in ("\n", "\r\n"):
        out = tmp_path / f"out{len(newline)}"
        prepare_files(out, write_text(tmp_path / "e.dat", newline.join(lines)))
        assert {row[1] for row in interactions(out, "train")} == set(ids)


PLAYS = [("a", "x,1", 1.0), ("b", "🎧 y", 2.0), ("b", 'say "z"', 3.0)]


def delimited(delimiter: str = ",", quoted: bool = True) -> bytes:
    text = io.StringIO()
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, quotechar='"' if quoted else None)
    writer.writerows([("customer", "item", "w"), *PLAYS])
    return text.getvalue().encode()


def json_lines() -> bytes:
    lines = [json.dumps({"w": weight, "item": item, "customer": customer}) for customer, item, weight in PLAYS]
    return "\n".join(lines).encode()


def test_compressed_and_delimited_files_hold_the_same_events(tmp_path: Path) -> None:
    contents = {
        "e.csv.gz": gzip.compress(delimited()),
        "e.tsv.gz": gzip.compress(delimited("\t", quoted=False)),
        "two members.csv.gz": gzip.compress(delimited()[:40]) + gzip.compress(delimited()[40:]),
        "without extension of its compression.csv": gzip.compress(delimited()),
        "e.ndjson": json_lines(),
        "semicolons.csv": delimited(";"),
        "tabs.csv": delimited("\t"),
        "bars.csv.gz": gzip.compress(delimited("|")),
    }
    files = [write_text(tmp_path / name, content) for name, content in contents.items()]
    prepare_files(tmp_path / "out", *files, weight="w", hold_out_valid="none")
    assert Counter(interactions(tmp_path / "out", "train")) == Counter(PLAYS * len(files))


NESTED = [{"user": {"id": "José", "at": {"y": 5}}, "item": 1, "w": "1,5"}, {"user": {"id": "b"}, "item": 2, "w": "2"}]
COMMAS = {"decimal": ",", "weight": "w"}
LATIN = "customer;item;w\nJosé;1;1,5\nb;2;2\n"


def nested_lines(*lines: str) -> str:
    return "\n".join([*(json.dumps(row, ensure_ascii=False) for row in NESTED), *lines])


@pytest.mark.parametrize(
    ("name", "content", "options", "bad_lines"),
    [
        ("latin.csv", LATIN.encode("latin-1"), {"encoding": "latin-1"}, 0),
        ("latin.csv.gz", gzip.compress(LATIN.encode("latin-1") + b"c\n"), {"encoding": "latin-1"}, 1),
        ("windows.csv", LATIN.encode("cp1252") + b"\x81;1;1\n", {"encoding": "cp1252"}, 1),
        ("wide.csv", LATIN.replace("\n", "\r\n").encode("utf-16"), {"encoding": "utf-16"}, 0),
        ("latin.tsv", LATIN.replace(";", ":").encode("latin-1"), {"encoding": "latin-1", "delimiter": ":"}, 0),
        ("dots.csv", LATIN + "c;3;1.234\nd;4;1.234,5\n", {}, 2),
        ("e.jsonl", nested_lines(), {"query": "customer=user.id"}, 0),
        ("e.jsonl", nested_lines("no object", '{"user": "c", "item": 1, "w": 1}'), {"query": "customer=user.id"}, 2),
        ("e.jsonl", nested_lines().encode("latin-1"), {"query": "customer=user.id", "encoding": "latin-1"}, 0),
        ("e.parquet", NESTED, {"query": "customer=user.id"}, 0),
        ("e.parquet", [*NESTED, {"user": None, "item": 1, "w": "1"}], {"query": "customer=user.id"}, 1),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_encodings_decimal_commas_delimiters_and_nested_values_are_read_as_options_say(
    tmp_path: Path, name: str, content: Any, options: dict[str, Any], bad_lines: int
) -> None:
    if isinstance(content, list):
        train = write_parquet(tmp_path / name, **{key: [row[key] for row in content] for key in content[0]})
    else:
        train = write_text(tmp_path / name, content)
    skip = {"on_bad_line": "skip", "max_bad": 1, "hold_out_valid": "none"}
    manifest = prepare_files(tmp_path / "out", train, **skip, **COMMAS, **options)
    assert sorted(interactions(tmp_path / "out", "train")) == [("José", 1, 1.5), ("b", 2, 2.0)]
    assert manifest.source["dropped_bad_lines"] == bad_lines


def test_values_of_objects_in_objects_are_context(tmp_path: Path) -> None:
    text = write_text(tmp_path / "e.jsonl", nested_lines())
    parquet = write_parquet(tmp_path / "e.parquet", **{key: [row[key] for row in NESTED] for key in NESTED[0]})
    options = {"context": {"year": "user.at.y"}, "hold_out_valid": "none"}
    prepare_files(tmp_path / "out", text, parquet, query="customer=user.id", id_type="string", **options)
    assert [(row["id"], row["count"]) for row in vocabulary(tmp_path / "out", "year")] == [("5", 2)]


def test_summary_asks_whether_large_times_are_milliseconds(tmp_path: Path) -> None:
    train = write_text(tmp_path / "e.csv", "customer,item,at\n1,1,1600000000000\n")
    manifest = prepare_files(tmp_path / "out", train, timestamp="at", hold_out_valid="none")
    summary = format_summary(manifest, Folder(tmp_path / "out"))
    assert "are these epoch-ms? --timestamp-format epoch-ms reads them as seconds" in summary


def test_json_values_keep_their_text_and_null_is_missing(tmp_path: Path) -> None:
    lines = [
        '{"customer": "007", "item": 1}',
        '{"customer": "8", "item": 12345678901}',
        '{"customer": null, "item": 2}',
    ]
    train = write_text(tmp_path / "e.jsonl", "\n".join(lines))
    manifest = prepare_files(tmp_path / "out", train, on_bad_line="skip", max_bad=1)
    assert sorted(interactions(tmp_path / "out", "train")) == [("007", 1, 1.0), ("8", 12345678901, 1.0)]
    assert manifest.source["dropped_bad_lines"] == 1


def test_adjacency_text_is_read_as_pairs_and_lines_without_items_are_counted(tmp_path: Path) -> None:
    train = write_text(tmp_path / "train.txt", "0 3 4 5\n1\n\n2 3\t9  4 \n")
    test = write_text(tmp_path / "test.txt", "0 9\r\n1\r\n7 100")
    manifest = prepare_files(tmp_path / "out", train, test=[test], format="lightgcn")
    pairs = [(0, 3), (0, 4), (0, 5), (2, 3), (2, 9), (2, 4)]
    assert Counter(interactions(tmp_path / "out", "train")) == Counter((*pair, 1.0) for pair in pairs)
    assert Counter(interactions(tmp_path / "out", "test")) == Counter([(0, 9, 1.0), (7, 100, 1.0)])
    assert manifest.source["lines_without_items"] == 2
    assert "2 lines without an item" in format_summary(manifest, Folder(tmp_path / "out"))


def test_batches_of_long_lines_of_adjacency_text_are_bounded_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def recording(connection: Any, part: pa.Table, statement: str) -> None:
        sizes.append(part.nbytes)
        execute_on(connection, part, statement)

    monkeypatch.setattr(raw_files, "execute_on", recording)
    items = " ".join(map(str, range(10**12, 10**12 + 10_000)))
    train = write_text(tmp_path / "train.txt", "".join(f"{user} {items}\n" for user in range(400)))
    with duckdb.connect() as connection:
        assert raw_files.open_adjacency(connection, RawFile(train, "lightgcn")) == 0
        assert connection.execute("SELECT count(*) FROM raw").fetchone() == (4_000_000,)
    assert max(sizes) < 20 << 20


def test_paths_with_spaces_quotes_unicode_and_wildcards_are_read(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s a "día" [1]'
    one = write_parquet(folder / "a*.parquet", customer=[1], item=[1])
    two = folder / "b?.csv"
    write_text(two, "customer,item\n2,2\n")
    three = folder / "c [x].txt.tsv"
    write_text(three, "customer\titem\n3\t3\n")
    write_parquet(folder / "abc.parquet", customer=[9], item=[9])  # which 'a*.parquet' would match as a pattern
    prepare_files(tmp_path / "ö u't", one, two, three.as_uri())
    assert sorted(interactions(tmp_path / "ö u't", "train")) == [(1, 1, 1.0), (2, 2, 1.0), (3, 3, 1.0)]


@pytest.mark.slow
def test_text_ids_become_integers_only_if_lossless(tmp_path: Path) -> None:
    prepare_files(tmp_path / "plain", write_text(tmp_path / "a.csv", "customer,item\n10,7\n9,8\n"))
    prepare_files(tmp_path / "zeros", write_text(tmp_path / "b.csv", "customer,item\n10,007\n9,8\n"))
    prepare_files(tmp_path / "huge", write_text(tmp_path / "c.csv", "customer,item\n10,9223372036854775808\n9,8\n"))
    prepare_files(tmp_path / "asked", tmp_path / "a.csv", id_type="string")
    assert read_manifest(Folder(tmp_path / "plain")).entities["item"].id_type == "int64"
    assert {row["id"] for row in vocabulary(tmp_path / "zeros", "item")} == {"007", "8"}
    assert {row["id"] for row in vocabulary(tmp_path / "huge", "item")} == {"9223372036854775808", "8"}
    assert [row["id"] for row in vocabulary(tmp_path / "asked", "customer")] == ["10", "9"]


def test_parquet_strings_stay_strings_and_small_integers_become_int64(tmp_path: Path) -> None:
    customers = pa.array(["1", "2"]).dictionary_encode()
    train = write_parquet(tmp_path / "e.parquet", customer=customers, item=pa.array([3, 4], pa.uint16()))
    manifest = prepare_files(tmp_path / "out", train)
    assert manifest.entities["customer"].id_type == "string"
    assert {row[:2] for row in interactions(tmp_path / "out", "train")} == {("1", 3), ("2", 4)}


def test_event_weights_are_applied_and_weight_zero_is_dropped(tmp_path: Path) -> None:
    train = write_text(tmp_path / "e.csv", "customer,item,what\n1,1,play\n1,2,it's\n2,3,skip\n2,1,play\n")
    weights = {"play": 1.0, "it's": 2.5, "skip": 0.0}
    manifest = prepare_files(tmp_path / "out", train, event="what", event_weights=weights)
    assert Counter(interactions(tmp_path / "out", "train")) == Counter([(1, 1, 1.0), (1, 2, 2.5), (2, 1, 1.0)])
    assert [row["id"] for row in vocabulary(tmp_path / "out", "item")] == [1, 2]  # 3 was only skipped
    assert "1 row of weight 0" in format_summary(manifest, Folder(tmp_path / "out"))


INTEGERS = [(pa.array([5, -7], pa.int32()), [5, -7]), (pa.array(["12", "-3"]), [12, -3])]
DATES = [
    (pa.array([1_577_836_800_999_999, -1], pa.timestamp("us")), [1_577_836_800, -1]),
    (pa.array([1_577_836_800_999, 0], pa.timestamp("ms", tz="America/New_York")), [1_577_836_800, 0]),
    (pa.array([1_577_836_800_999_999_001, 0], pa.timestamp("ns")), [1_577_836_800, 0]),
    (pa.array([dt.date(2020, 1, 1), dt.date(1969, 12, 31)]), [1_577_836_800, -86_400]),
    (pa.array(["2020-01-01T02:00:00+02:00", "2020-01-01 00:00:01.5"]), [1_577_836_800, 1_577_836_801]),
]


@pytest.mark.parametrize("columns", [INTEGERS, DATES])
def test_timestamps_become_seconds_and_integers_are_unchanged(
    tmp_path: Path, columns: list[tuple[pa.Array, list[int]]]
) -> None:
    files = [
        write_parquet(tmp_path / f"{number}.parquet", customer=[number, number], item=[1, 2], at=values)
        for number, (values, _) in enumerate(columns)
    ]
    manifest = prepare_files(tmp_path / "out", *files, timestamp="at", hold_out_valid="none")
    assert manifest.has_timestamp
    found = [row[3] for row in sorted(interactions(tmp_path / "out", "train"))]
    assert found == [time for _, expected in columns for time in expected]
