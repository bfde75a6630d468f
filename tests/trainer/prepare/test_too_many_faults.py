"""``--max-bad``: a wrong column or format is not read as a small dataset, in any format and for files of names."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from preparing import entries, prepare_files, write_parquet, write_text

from crossfade.base.errors import InputError, worded
from crossfade.trainer.prepare import event_values
from crossfade.trainer.prepare.faults import FaultyFilesError
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.option_values import NamesFile
from crossfade.trainer.prepare.text_records import Record, find_records

pytestmark = pytest.mark.slow

ROWS = 100
VALUES = {"few": 5, "many": 40}
"""How many of the rows are at fault."""


def event_file(folder: Path, kind: str, bad: int) -> tuple[Path, dict[str, Any]]:
    """Write events of a ``kind`` of which ``bad`` have text as weight; return options that read them."""
    rows = [{"customer": n % 9, "item": n, "w": "x" if n < bad else "1"} for n in range(ROWS)]
    if kind == "parquet":
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return write_parquet(folder / "e.parquet", **columns), {"weight": "w"}
    if kind == "jsonl":
        return write_text(folder / "e.jsonl", "\n".join(map(json.dumps, rows))), {"weight": "w"}
    if kind == "lightgcn":  # a good line has many rows, so that lines are counted
        lines = ["1 x" if n < bad else f"{n} {' '.join(map(str, range(50)))}" for n in range(ROWS)]
        return write_text(folder / "e.txt", "\n".join(lines)), {"format": "lightgcn"}
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    return write_text(folder / "e.csv", "\n".join(lines)), {"weight": "w"}


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "lightgcn"])
def test_more_than_a_tenth_of_bad_rows_is_an_error_in_every_format(tmp_path: Path, kind: str) -> None:
    few, options = event_file(tmp_path, kind, VALUES["few"])
    options |= {"on_bad_line": "skip", "hold_out_valid": "none"}
    assert prepare_files(tmp_path / "few", few, **options).source["dropped_bad_lines"] == VALUES["few"]
    many, _ = event_file(tmp_path, kind, VALUES["many"])
    before = entries(tmp_path)
    with pytest.raises(InputError, match=rf"^40 of 100 rows would be left out \(40\.0%\).*{many.name}.* max_bad 40%$"):
        prepare_files(tmp_path / "many", many, **options)
    assert entries(tmp_path) == before


def test_rows_of_a_wrong_column_are_counted_without_being_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []

    def recording(file: RawFile, positions: Iterable[int]) -> Iterator[Record | None]:
        found = list(positions)
        searched.extend(found)
        return find_records(file, found)

    monkeypatch.setattr(event_values, "find_records", recording)
    rows = "".join(f"{n},{n},{'' if n == 900 else 'x'}\n" for n in range(1000))
    train = write_text(tmp_path / "e.csv", "customer,item,w\n" + rows)
    with pytest.raises(FaultyFilesError) as caught:
        prepare_files(tmp_path / "out", train, weight="w")
    details = [worded(line) for line in caught.value.details]
    assert details[0].startswith("999 lines: the weight of column 'w' is not allowed")
    assert details[0].endswith("e.csv, lines 2 'x', 3 'x', 4 'x', 5 'x', 6 'x', …)")
    assert details[1].startswith("1 line: the weight of column 'w' is missing")
    assert details[1].endswith("line 902)")
    assert searched == [0, 1, 2, 3, 4, 900]


def test_names_of_which_most_lines_are_bad_are_an_error(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", customer=[1, 2] * 50, item=list(range(100)))
    names = write_text(tmp_path / "n.csv", "id,name\n" + "".join(f"{n},Earth, Wind\n" for n in range(60)) + "70,Abba\n")
    with pytest.raises(InputError, match=r"60 of 61 rows would be left out.*n\.csv"):
        prepare_files(tmp_path / "out", train, on_bad_line="skip", names={"item": NamesFile(names, "id", "name")})
