"""Rows are found by ID or name, and what is misspelt is helped."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from builders import write_vocabulary

from crossfade.kvstore.errors import InputError
from crossfade.kvstore.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.recommend.row_names import RowLabel, RowNames

ARTISTS = ["Radiohead", "Björk", "311", "Muse", "muse", None, "Sigur Rós"]
IDS = [10, 11, 12, 13, 14, 311, 16]


def names_of(folder: Path, ids: list[int] | list[str], names: list[str | None] | None) -> RowNames:
    artist = write_vocabulary(folder, "artist", ids, names=names, file_rows=4, group_rows=2)
    customer = write_vocabulary(folder, "customer", [1])
    manifest = DatasetManifest(
        query="customer", item="artist", entities={"artist": artist, "customer": customer}, splits={}
    )
    return RowNames(Vocabulary(Folder(folder), manifest, "artist"), "artist")


@pytest.fixture
def names(tmp_path: Path) -> RowNames:
    return names_of(tmp_path, IDS, ARTISTS)


@pytest.mark.parametrize(
    ("text", "row"),
    [("10", 0), ("Radiohead", 0), ("rADIOHEAD", 0), ("BJÖRK", 1), ("MUSE", 3), ("14", 4), ("sigur rós", 6)],
)
def test_row_is_found_by_id_or_name(names: RowNames, text: str, row: int) -> None:
    assert names.find([text]) == [row]


def test_id_goes_before_a_name_and_order_is_kept(names: RowNames) -> None:
    assert names.find(["muse", "311", "11", "muse"]) == [3, 5, 1, 3]


@pytest.mark.parametrize(
    ("text", "suggestion"), [("Radiohed", "Radiohead"), ("Bjork", "Björk"), ("sigur ros", "Sigur Rós")]
)
def test_misspelt_name_gets_a_suggestion(names: RowNames, text: str, suggestion: str) -> None:
    with pytest.raises(InputError, match=f"no artist with the ID or name '{text}'; did you mean '{suggestion}'"):
        names.find(["10", text])


def test_unknown_text_gets_examples(names: RowNames, tmp_path: Path) -> None:
    message = r"'xyz' \(and 1 more are unknown\); expected a name or an ID, such as Radiohead, Björk$"
    with pytest.raises(InputError, match=message):
        names.find(["xyz", "10", "qqq"])
    numbered = names_of(tmp_path / "numbered", IDS, None)
    with pytest.raises(InputError, match=r"'17'; expected an ID, such as 10, 11$"):
        numbered.find(["17"])
    lettered = names_of(tmp_path / "lettered", ["c001", "c002"], None)
    with pytest.raises(InputError, match=r"'c003'; did you mean 'c001', 'c002'\?$"):
        lettered.find(["c003"])


def test_rows_of_a_list_of_ids(names: RowNames) -> None:
    rows_N, missing = names.rows_of(pa.array(["16", "99", "10"]))
    np.testing.assert_array_equal(rows_N, [0, 6])
    assert missing == ["99"]


def test_labels_are_names_or_ids(names: RowNames) -> None:
    labels = names.labels(np.array([5, 0, 5]))
    assert labels == {0: RowLabel(10, "Radiohead"), 5: RowLabel(311, None)}
    assert [str(label) for label in labels.values()] == ["Radiohead", "311"]
    assert names.labels(np.empty(0, np.int64)) == {}
