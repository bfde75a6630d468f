"""Extending a base dataset: its ids keep their rows, whatever else changes."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import write_vocabulary
from preparing import forget_dataset, interactions, vocabulary_tuples

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.prepare.option_values import NamesFile
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare

pytestmark = pytest.mark.slow


def day(folder: Path, name: str, customers: list[Any], items: list[Any], **options: Any) -> Path:
    """Prepare a dataset of events, each of one customer and one item."""
    raw = folder / f"{name}.parquet"
    pq.write_table(pa.table({"customer": customers, "item": items}), raw)
    prepare(PrepareOptions.of(out=folder / name, train=[raw], threads=2, hold_out_valid="none", **options))
    return folder / name


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return day(tmp_path, "first", ["a", "b", "a", "c", "a", "b"], [1, 1, 2, 3, 4, 2])


def test_base_ids_keep_rows_and_new_ids_follow_by_count_then_id(tmp_path: Path, first: Path) -> None:
    assert vocabulary_tuples(first, "customer") == [(0, "a", 3), (1, "b", 2), (2, "c", 1)]
    events = [("z", 9), ("c", 1), ("x", 7), ("z", 1), ("y", 9), ("c", 9)]
    second = day(tmp_path, "second", *map(list, zip(*events, strict=True)), base=str(first))
    expected = [(0, "a", 0), (1, "b", 0), (2, "c", 2), (3, "z", 2), (4, "x", 1), (5, "y", 1)]
    assert vocabulary_tuples(second, "customer") == expected
    assert vocabulary_tuples(second, "item") == [(0, 1, 2), (1, 2, 0), (2, 3, 0), (3, 4, 0), (4, 9, 3), (5, 7, 1)]
    assert sorted(row[:2] for row in interactions(second, "train")) == sorted(events)


@pytest.mark.slow
def test_names_of_base_are_kept_unless_new_names_replace_them(tmp_path: Path) -> None:
    names = {"first": {"1": "One", "2": "Two", "3": ""}, "second": {"2": "Zwei", "9": "Neun"}}
    for name, texts in names.items():
        lines = ["id,name", *(f"{key},{text}" for key, text in texts.items())]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    files = {name: {"item": NamesFile(tmp_path / f"{name}.csv", "id", "name")} for name in names}
    one = day(tmp_path, "first", ["a", "a", "a"], [1, 2, 3], names=files["first"])
    carried = day(tmp_path, "carried", ["b"], [9], base=str(one))
    assert vocabulary_tuples(carried, "item") == [(0, 1, 0, "One"), (1, 2, 0, "Two"), (2, 3, 0, None), (3, 9, 1, None)]
    renamed = day(tmp_path, "renamed", ["b"], [9], base=str(one), names=files["second"])
    assert [row[3] for row in vocabulary_tuples(renamed, "item")] == ["One", "Zwei", None, "Neun"]


def test_vacant_row_stays_vacant_and_returning_customer_gets_new_row(tmp_path: Path, first: Path) -> None:
    forget_dataset(Folder(first), pa.array(["b"]), "customer", NullReporter())
    second = day(tmp_path, "second", ["b", "a"], [1, 1], base=str(first))
    assert vocabulary_tuples(second, "customer") == [(0, "a", 1), (1, None, 0), (2, "c", 0), (3, "b", 1)]
    assert read_manifest(Folder(second)).entities["customer"].vacant_rows == [1]
    assert sorted(row[:2] for row in interactions(second, "train")) == [("a", 1), ("b", 1)]


@pytest.mark.slow
def test_text_ids_stay_strings_if_base_has_strings(tmp_path: Path) -> None:
    one = day(tmp_path, "first", ["a", "7"], [1, 2])
    (tmp_path / "second.csv").write_text("customer,item\n7,2\n8,1\n")
    prepare(PrepareOptions.of(out=tmp_path / "second", train=[tmp_path / "second.csv"], base=str(one)))
    assert [row[1] for row in vocabulary_tuples(tmp_path / "second", "customer")] == ["7", "a", "8"]
    assert [row[1] for row in vocabulary_tuples(tmp_path / "second", "item")] == [1, 2]


@pytest.mark.parametrize(
    ("customers", "options", "message"),
    [
        ([1], {}, r"its ids of customer are strings, but those of the events are integers; .* id_type string"),
        (
            ["a"],
            {"item": "track=item"},
            r"its entities are customer and item, .* and track",
        ),
    ],
)
def test_base_with_other_entities_or_id_types_is_rejected(
    tmp_path: Path, first: Path, customers: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"base {first}: {message}"):
        day(tmp_path, "second", customers, [1], base=str(first), **options)
    assert not (tmp_path / "second").exists()


def test_missing_base_or_base_as_output_is_rejected(tmp_path: Path, first: Path) -> None:
    with pytest.raises(InputError, match=r"base .*nowhere/manifest.json: no such file"):
        day(tmp_path, "second", ["a"], [1], base=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=f"base {first}: is also out"):
        day(tmp_path, "first", ["a"], [1], base=str(first), overwrite=True)


def test_base_with_duplicate_id_is_rejected(tmp_path: Path, first: Path) -> None:
    manifest = read_manifest(Folder(first))
    customers = write_vocabulary(first, "customer", ["a", "b", "a"])
    manifest.model_copy(update={"entities": {**manifest.entities, "customer": customers}}).write(Folder(first))
    with pytest.raises(InputError, match=r"of customer has 3 ids, 2 of them distinct, .*crossfade validate"):
        day(tmp_path, "second", ["a"], [1], base=str(first))
