"""Rows are found by ID or name, labeled, and searched, without regard to case and accents, scanned and from a file."""

from pathlib import Path

import numpy as np
import pytest
from builders import write_vocabulary

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.recommend import row_names
from crossfade.trainer.recommend.row_names import RowLabel, RowLookup, RowNames, distinct_labels
from crossfade.trainer.serving.names import StoredNames, write_names

ARTISTS = ["Radiohead", "Björk", "bjork", "The Beatles", "Beat Happening", "Radio 4", "BJÖRK", "99", None, "311"]
ARTIST_IDS = [70, 71, 72, 73, 74, 75, 76, 99, 311, 12]
TRACKS = ["Radiohead|Creep", "Björk|Jóga", "TLC|Creep", r"AC\|DC|T.N.T.", "Creep|Skinny Puppy", "creep"]


def vocabularies_in(folder: Path) -> dict[str, Vocabulary]:
    counts_N = np.arange(20, 0, -1)
    sizes = {"file_rows": 4, "group_rows": 2}
    entities = {
        "artist": write_vocabulary(folder, "artist", ARTIST_IDS, names=ARTISTS, counts=counts_N[:10], **sizes),
        "listener": write_vocabulary(folder, "listener", ["7", "x y", "-1"], counts=counts_N[:3]),
        "track": write_vocabulary(folder, "track", TRACKS, counts=counts_N[:6]),
    }
    manifest = DatasetManifest(query="listener", item="artist", entities=entities, splits={})
    return {name: Vocabulary(Folder(folder), manifest, name) for name in entities}


@pytest.fixture(params=["scanned", "stored"])
def names(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, RowLookup]:
    """Return the names of each entity, by both ways of finding them."""
    return {**(stored if request.param == "stored" else read)(tmp_path)}


def stored(folder: Path) -> dict[str, StoredNames]:
    vocabularies = vocabularies_in(folder)
    write_names(vocabularies, folder / "names.sqlite", NullReporter())
    return {entity: StoredNames(folder / "names.sqlite", entity) for entity in vocabularies}


def read(folder: Path) -> dict[str, RowNames]:
    return {entity: RowNames(vocabulary, entity) for entity, vocabulary in vocabularies_in(folder).items()}


@pytest.fixture
def scanned(tmp_path: Path) -> dict[str, RowNames]:
    return read(tmp_path)


@pytest.mark.parametrize(
    ("entity", "text", "row"),
    [
        ("artist", "72", 2),
        ("artist", "Radiohead", 0),
        ("artist", "rADIOHEAD", 0),
        ("artist", "björk", 1),
        ("artist", "BJORK", 2),  # an exact name is preferred to one without accents
        ("artist", "bjôrk", 1),
        ("artist", "Bjo\N{COMBINING DIAERESIS}rk", 1),
        ("artist", "the beatles", 3),
        ("artist", "99", 7),
        ("artist", "311", 8),  # an ID goes before a name
        ("artist", "77", None),
        ("artist", "-5", None),
        ("artist", "9" * 30, None),
        ("artist", "Portishead", None),
        ("listener", "7", 0),
        ("listener", "x y", 1),
        ("listener", "-1", 2),
        ("listener", "X Y", None),
    ],
)
def test_row_is_found_by_id_or_name(names: dict[str, RowLookup], entity: str, text: str, row: int | None) -> None:
    assert names[entity].found([text]) == ({} if row is None else {text: row})


@pytest.mark.parametrize(
    ("entity", "text", "limit", "rows"),
    [
        ("artist", "beat", 10, [3, 4]),
        ("artist", "radio", 10, [0, 5]),
        ("artist", "radio 4", 10, [5]),
        ("artist", "beatles THE", 10, [3]),
        ("artist", "BJÖRK", 2, [1, 2]),
        ("artist", "radio", 1, [0]),
        ("artist", "\"'*:^) OR", 10, []),
        ("artist", "70", 10, [0]),
        ("artist", "311", 10, [8, 9]),
        ("listener", "x y", 10, [1]),
        ("listener", "X", 10, [1]),
        ("track", "creep", 10, [5, 0, 2, 4]),
        ("track", "jo", 10, [1]),
    ],
)
def test_words_are_found_by_their_first_letters(
    tmp_path: Path, entity: str, text: str, limit: int, rows: list[int]
) -> None:
    assert stored(tmp_path)[entity].search(text, limit) == rows


def test_labels_are_names_or_ids_of_their_type(names: dict[str, RowLookup]) -> None:
    labels = names["artist"].labels([8, 1, 8])
    assert labels == {8: RowLabel(311, None), 1: RowLabel(71, "Björk")}
    assert (str(labels[8]), str(labels[1])) == ("311", "Björk")
    assert names["listener"].labels([2]) == {2: RowLabel("-1", None)}
    assert names["artist"].labels([]) == {}


def test_rows_of_a_list_of_ids(names: dict[str, RowLookup]) -> None:
    rows_N, missing = names["artist"].rows_of(["76", "98", "70"])
    np.testing.assert_array_equal(rows_N, [0, 6])
    assert missing == ["98"]


def test_name_of_several_rows_is_reported_with_their_ids(
    scanned: dict[str, RowNames], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    assert scanned["artist"].found(["björk", "70", "Radiohead"], lines.append) == {"björk": 1, "70": 0, "Radiohead": 0}
    assert lines == ["2 rows of artist are named 'björk': 71, 76; the first is used; name another one by its ID"]
    monkeypatch.setattr(row_names, "_NAMESAKES", 2)
    assert scanned["artist"].found(["bjôrk"], lines.append) == {"bjôrk": 1}
    assert lines[1].startswith("3 rows of artist are named 'bjôrk': 71, 72 and 1 more; ")


def test_unknown_text_gets_examples(scanned: dict[str, RowNames]) -> None:
    expected = "there is no artist with the ID or name 'xyz'; expected a name or an ID, such as Radiohead, Björk, bjork"
    assert scanned["artist"].describe_unknown(["xyz"]) == expected
    several = scanned["artist"].describe_unknown(["xyz", "q"])
    assert several.startswith("the model has no artist with these 2 IDs or names: xyz, q")
    assert scanned["listener"].describe_unknown(["17"]).endswith("'17'; expected an ID, such as 7, x y, -1")


def test_names_that_several_rows_of_a_list_have_get_their_ids() -> None:
    labels = {3: RowLabel(30, "Intro"), 1: RowLabel(10, "Intro"), 2: RowLabel(20, "Creep"), 4: RowLabel("x", None)}
    assert distinct_labels(labels) == {3: "Intro (30)", 1: "Intro (10)", 2: "Creep", 4: "x"}
