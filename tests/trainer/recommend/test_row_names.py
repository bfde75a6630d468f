"""Rows are found by ID or name, in any case and with or without accents."""

from pathlib import Path

import numpy as np
import pytest
from builders import write_vocabulary

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.recommend.row_names import RowLabel, RowNames, distinct_labels

ARTISTS = ["Radiohead", "Björk", "311", "Muse", "muse", None, "Sigur Rós"]
IDS = [10, 11, 12, 13, 14, 311, 16]


def names_of(folder: Path, ids: list[int] | list[str], names: list[str | None] | None) -> RowNames:
    counts_N = np.array([90, 70, 60, 40, 3, 2, 1, 1, 1])[: len(ids)]
    artist = write_vocabulary(folder, "artist", ids, names=names, counts_N=counts_N, file_rows=4, group_rows=2)
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
    [
        ("10", 0),
        ("Radiohead", 0),
        ("rADIOHEAD", 0),
        ("BJÖRK", 1),
        ("MUSE", 3),
        ("14", 4),
        ("sigur rós", 6),
        ("bjork", 1),
        ("Sigur Ros", 6),
        ("Bjo\N{COMBINING DIAERESIS}rk", 1),
    ],
)
def test_row_is_found_by_id_or_name(names: RowNames, text: str, row: int) -> None:
    assert names.found([text]) == {text: row}


def test_id_goes_before_a_name(names: RowNames) -> None:
    assert names.found(["muse", "311", "11", "99"]) == {"muse": 3, "311": 5, "11": 1}


def test_name_of_several_rows_is_reported_with_their_ids(names: RowNames, tmp_path: Path) -> None:
    lines: list[str] = []
    assert names.found(["muse", "10", "Radiohead"], lines.append) == {"muse": 3, "10": 0, "Radiohead": 0}
    assert lines == [
        "2 rows of artist are named 'muse': 13, 14; the first is used; name another one by its ID",
    ]
    many = names_of(tmp_path / "many", list(range(2000, 2009)), ["Intro", "Ìntro", *["intro"] * 7])
    assert many.found(["intro", "ïntro"], lines.append) == {"intro": 0, "ïntro": 0}
    assert " and 3 more; " in lines[1]
    assert lines[2].startswith("9 rows of artist are named 'ïntro': ")


def test_unknown_text_gets_examples(names: RowNames, tmp_path: Path) -> None:
    expected = "there is no artist with the ID or name 'xyz'; expected a name or an ID, such as Radiohead, Björk, 311"
    assert names.describe_unknown(["xyz"]) == expected
    assert names.describe_unknown(["xyz", "q"]).startswith("the model has no artist with these 2 IDs or names: xyz, q")
    numbered = names_of(tmp_path / "numbered", IDS, None)
    assert numbered.describe_unknown(["17"]).endswith("'17'; expected an ID, such as 10, 11, 12")


def test_names_that_several_rows_of_a_list_have_get_their_ids() -> None:
    labels = {3: RowLabel(30, "Intro"), 1: RowLabel(10, "Intro"), 2: RowLabel(20, "Creep"), 4: RowLabel("x", None)}
    assert distinct_labels(labels) == {3: "Intro (30)", 1: "Intro (10)", 2: "Creep", 4: "x"}


def test_rows_of_a_list_of_ids(names: RowNames) -> None:
    rows_N, missing = names.rows_of(["16", "99", "10"])
    np.testing.assert_array_equal(rows_N, [0, 6])
    assert missing == ["99"]


def test_words_are_found_by_their_first_letters(names: RowNames) -> None:
    assert names.search("SIG r", 10) == [6]
    assert names.search("mu", 1) == [3]
    assert names.search("311", 10) == [5, 2]
    assert names.search("*", 10) == []


def test_labels_are_names_or_ids(names: RowNames) -> None:
    labels = names.labels(np.array([5, 0, 5]))
    assert labels == {0: RowLabel(10, "Radiohead"), 5: RowLabel(311, None)}
    assert [str(label) for label in labels.values()] == ["Radiohead", "311"]
    assert names.labels(np.empty(0, np.int64)) == {}
