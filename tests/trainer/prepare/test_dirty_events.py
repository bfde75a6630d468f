"""Event files with many faults: all are listed at once, and what is left out is counted, kept, and reported."""

import csv
import io
import random
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from command_here import crossfade_here
from dirty_plays import FAULTS, DirtyPlays
from preparing import interactions, prepare_files, vocabulary, write_parquet, write_text
from running_command import messages

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.prepare.faults import FaultyFilesError
from crossfade.trainer.prepare.option_values import NamesFile
from crossfade.trainer.prepare.summary import format_summary

pytestmark = pytest.mark.slow

COUNT = 2000
COLUMNS = ("--query", "customer=user", "--item", "track=title", "--weight", "plays", "--timestamp", "at")
FORMATS = ("--timestamp-format", "iso", "%d/%m/%Y %H:%M", "epoch-s", "epoch-ms")


@pytest.fixture
def plays(tmp_path: Path) -> DirtyPlays:
    return DirtyPlays(tmp_path / "plays.csv", COUNT)


def prepare(folder: Path, *words: str) -> CompletedProcess[str]:
    return crossfade_here("prepare", "--events", "plays.csv", *COLUMNS, *words, "--out", "data", cwd=folder)


def listing(stderr: str) -> dict[str, str]:
    """Return the logged lines of problems with places, by problem."""
    *problems, _ = messages(stderr)
    return {line.split(": ", 2)[2].rpartition(" (")[0]: line for line in problems if line.endswith(")")}


def test_every_fault_is_listed_with_count_and_first_five_places(tmp_path: Path, plays: DirtyPlays) -> None:
    result = prepare(tmp_path, *FORMATS)
    assert result.returncode == 2
    found = listing(result.stderr)
    expected = {
        "has 6 fields": ("unquoted comma", ""),
        "has 2 fields": ("short", ""),
        "a quote opens and does not close": ("stray quote", ""),
        "is not UTF-8": ("not UTF-8", ""),
        "the weight of column 'plays' is not allowed": ("text as plays", " 'n/a'"),
        "the item id of column 'title' has a control character": ("null byte", " 'Army\\x00of Me'"),
        "the timestamp of column 'at' has none of the formats": ("no such time", " 'soon'"),
        "the query id of column 'user' is missing": ("no customer", ""),
        "the item id of column 'title' is missing": ("no title", ""),
        "the timestamp of column 'at' is missing": ("no time", ""),
    }
    assert len(found) == len(expected)
    for problem, (fault, value) in expected.items():
        (line,) = [line for text, line in found.items() if text.startswith(problem)]
        places = ", ".join(f"{number}{value}" for number in plays.lines[fault][:5])
        more = ", …" if len(plays.lines[fault]) > 5 else ""
        assert line.startswith(f"crossfade: {len(plays.lines[fault])} lines: {problem}")
        assert line.endswith(f"(plays.csv, lines {places}{more})")
    message = messages(result.stderr)[-1].removeprefix("crossfade: error: ")
    assert "faults, listed above" in message
    assert "--on-bad-line skip" in message


@pytest.mark.slow
def test_left_out_lines_are_counted_and_the_others_are_read(tmp_path: Path, plays: DirtyPlays) -> None:
    words = ("--on-bad-line", "skip", "--duplicates", "sum", "--hold-out-valid", "none")
    result = prepare(tmp_path, *FORMATS, *words)
    assert result.returncode == 0, result.stderr
    found = {(query, item): weight for query, item, weight, _ in interactions(tmp_path / "data", "train")}
    assert found == dict(plays.pairs)
    assert {row[3] for row in interactions(tmp_path / "data", "train")} <= plays.times
    bad = sum(map(len, plays.lines.values()))
    facts = read_manifest(Folder(tmp_path / "data")).source
    assert (facts["rows_read"], facts["dropped_bad_lines"]) == (COUNT, bad)
    assert len(facts["dropped_faults"]) == len(FAULTS)
    assert not any("n/a" in fault for fault in facts["dropped_faults"])  # values may be of a person
    assert f"dropped: {bad} bad lines" in result.stdout


def test_faults_of_all_files_are_listed_in_one_pass(tmp_path: Path) -> None:
    one = write_text(tmp_path / "1.csv", "customer,item\n1,1\n2\n3\n")
    other = write_text(tmp_path / "2.csv", "customer,item\n1\n2,\n")
    wrong = write_text(tmp_path / "3.csv", "user,item\n1,1\n")
    caught = crossfade_here("prepare", "--events", one.name, other.name, wrong.name, "--out", "data", cwd=tmp_path)
    assert messages(caught.stderr) == [
        "crossfade: 3 lines: has 1 field, but the header has 2; fix the line; quote fields that hold the delimiter "
        "(1.csv, lines 3, 4; 2.csv, line 2)",
        "crossfade: 1 line: the item id of column 'item' is missing or empty; expected an id in every row "
        "(2.csv, line 3)",
        "crossfade: 3.csv: has no column 'customer'; its columns are: user, item",
        "crossfade: error: the events have 5 faults, listed above; correct the files, or leave out bad lines with "
        "--on-bad-line skip",
    ]


@pytest.mark.parametrize("character", ["\0", "\x9f"])
def test_control_character_in_an_id_is_a_bad_line(tmp_path: Path, character: str) -> None:
    train = write_text(tmp_path / "e.csv", f"customer,item\nc,a{character}b\nc,ab\n")
    with pytest.raises(InputError) as caught:
        prepare_files(tmp_path / "out", train)
    assert "of column 'item' has a control character" in str(caught.value)
    prepare_files(tmp_path / "out", train, on_bad_line="skip", max_bad=1)
    assert [row["id"] for row in vocabulary(tmp_path / "out", "item")] == ["ab"]


def test_error_names_the_files_without_which_the_others_can_be_prepared(tmp_path: Path) -> None:
    texts = {
        "good.csv": "customer,item\n" + "1,1\n" * 20,
        "some.csv": "customer,item\n" + "1,1\n" * 20 + "2\n",
        "bad.csv": "customer,item\n1\n2,\n3,3\n",
        "column.csv": "user,item\n1,1\n",
        "empty.csv": "",
    }
    files = {name: write_text(tmp_path / name, text) for name, text in texts.items()}
    problems = {
        "column.csv": f"{files['column.csv']}: has no column 'customer'; its columns are: user, item",
        "empty.csv": f"{files['empty.csv']}: is empty; expected a header line with the names of the columns",
        "bad.csv": "2 of 3 rows would be left out",
    }
    for names, faulty in (
        (texts, ["column.csv", "empty.csv"]),  # the bad lines of all files together are few
        (["some.csv", "bad.csv"], ["bad.csv"]),
        (["some.csv", "bad.csv", "empty.csv"], ["bad.csv", "empty.csv"]),
    ):
        with pytest.raises(FaultyFilesError) as error:
            prepare_files(tmp_path / "out", *(files[name] for name in names), on_bad_line="skip")
        assert error.value.files == {str(files[name]): problems[name] for name in faulty}
    text = write_text(tmp_path / "text.csv", "customer,item\na,1\n")
    rare = {str(text): "column 'customer' holds strings, unlike in most files"}
    for names, faulty in ((["good.csv"], {}), (["good.csv", "some.csv"], rare)):  # of two, either may be wrong
        with pytest.raises(FaultyFilesError) as error:
            prepare_files(tmp_path / "out", text, *(files[name] for name in names), on_bad_line="skip")
        assert error.value.files == faulty


def test_stray_quotes_cost_their_line_only(tmp_path: Path) -> None:
    lines = ["customer,item", '1,"open', '2,"two', 'lines"', '3,7" mix', '4,"closed" early', '5,"say ""hi"""', '6,"end']
    train = write_text(tmp_path / "e.csv", "\n".join(lines) + "\n")
    manifest = prepare_files(tmp_path / "out", train, on_bad_line="skip", max_bad=1)
    ids = {row["id"] for row in vocabulary(tmp_path / "out", "item")}
    assert ids == {"two\nlines", '7" mix', 'say "hi"'}
    [fault] = manifest.source["dropped_faults"]
    assert fault.endswith("lines 2, 6, 8)")


def test_bad_lines_of_adjacency_text_and_json_are_left_out(tmp_path: Path) -> None:
    text = write_text(tmp_path / "e.txt", "0 1 2\n1 x\n2 3\n")
    manifest = prepare_files(tmp_path / "text", text, format="lightgcn", on_bad_line="skip", max_bad=1)
    assert sorted(row[:2] for row in interactions(tmp_path / "text", "train")) == [(0, 1), (0, 2), (2, 3)]
    assert manifest.source["dropped_bad_lines"] == 1
    lines = ['{"customer": "a", "item": 1}', "", '{"customer": "b", "item": 2', "[1, 2]", '{"item": 4}']
    lines += ['{"customer": "\\udc00", "item": 1}', f'{{"customer": {"[" * 50_000}']
    lines += ['{"customer": "c", "item": 2, "other": [[]]}', '{"customer": "\u0007", "item": 3}']
    events = write_text(tmp_path / "e.jsonl", "\n".join(lines))
    manifest = prepare_files(tmp_path / "json", events, on_bad_line="skip", max_bad=1)
    assert [row[:2] for row in interactions(tmp_path / "json", "train")] == [("a", 1), ("c", 2)]
    places = [fault.rpartition("e.jsonl, line")[2] for fault in manifest.source["dropped_faults"]]
    assert places == ["s 3, 4, 6, 7, 9)", " 5)"]


def test_bad_rows_of_parquet_are_counted_by_row(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", customer=["a", "b"], item=[1, 2], w=[1.0, float("nan")])
    manifest = prepare_files(tmp_path / "out", train, weight="w", on_bad_line="skip", max_bad=1)
    [fault] = manifest.source["dropped_faults"]
    assert "expected a finite number" in fault
    assert fault.endswith("e.parquet, row 2)")


@pytest.mark.slow
def test_names_of_a_dirty_file_follow_the_policy_of_bad_lines(tmp_path: Path) -> None:
    train = write_text(tmp_path / "e.csv", "customer,item,title\n1,1,One\n2\n2,2,Two\n")
    other = write_text(tmp_path / "n.csv", "item,title\n1,Uno\n2\n2,Dos,x\n")
    of_events = {"item": NamesFile(train, "item", "title")}
    with pytest.raises(InputError, match="has 1 field"):
        prepare_files(tmp_path / "out", train, names=of_events)
    prepare_files(tmp_path / "1", train, names=of_events, on_bad_line="skip", max_bad=1)
    assert [row["name"] for row in vocabulary(tmp_path / "1", "item")] == ["One", "Two"]
    of_other = {"item": NamesFile(other, "item", "title")}
    manifest = prepare_files(tmp_path / "2", train, names=of_other, on_bad_line="skip", max_bad=1)
    assert manifest.source["item_names_bad_lines"] == 2
    assert "; 2 bad lines left out" in format_summary(manifest, Folder(tmp_path / "2"))


@pytest.mark.slow
def test_bad_line_does_not_change_how_the_others_are_read(tmp_path: Path) -> None:
    draw, pieces = random.Random(11), ["a", "é", "🎧", '"', '""', ",", ";", " ", "\\", "'", "#", "|", "7", "\n", "\r\n"]
    rows = [("customer", "item", "other")]
    rows += [
        (f"c{number}", "x" + "".join(draw.choices(pieces, k=6)), "".join(draw.choices(pieces, k=2)))
        for number in range(300)
    ]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    sound = write_text(tmp_path / "sound.csv", text.getvalue())
    dirty = write_text(tmp_path / "dirty.csv", text.getvalue() + "c300" + "\n")
    prepare_files(tmp_path / "1", sound)
    assert prepare_files(tmp_path / "2", dirty, on_bad_line="skip", max_bad=1).source["dropped_bad_lines"] == 1
    assert interactions(tmp_path / "1", "train") == interactions(tmp_path / "2", "train")
    assert {row[:2] for row in interactions(tmp_path / "1", "train")} == {row[:2] for row in rows[1:]}
