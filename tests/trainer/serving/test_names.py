"""Names: IDs of both types and names are found, labeled and searched, without regard to case and accents."""

from pathlib import Path

import pytest
from cluster_data import write_vocabulary

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.recommend.row_names import RowLabel
from crossfade.trainer.serving.names import StoredNames, write_names

ARTISTS = ["Radiohead", "Björk", "bjork", "The Beatles", "Beat Happening", "Radio 4", "BJÖRK", "99"]

TRACKS = ["Radiohead|Creep", "Björk|Jóga", "TLC|Creep", r"AC\|DC|T.N.T.", "Creep|Skinny Puppy", "creep"]


@pytest.fixture
def names(tmp_path: Path) -> dict[str, StoredNames]:
    vocabularies = vocabularies_in(tmp_path)
    write_names(vocabularies, tmp_path / "names.sqlite", NullReporter())
    return {entity: StoredNames(tmp_path / "names.sqlite", entity) for entity in vocabularies}


def vocabularies_in(folder: Path) -> dict[str, Vocabulary]:
    entities = {
        "artist": write_vocabulary(folder, "artist", [70, 71, 72, 73, 74, 75, 76, 99], names=ARTISTS),
        "listener": write_vocabulary(folder, "listener", ["7", "x y", "-1"]),
        "track": write_vocabulary(folder, "track", TRACKS),
    }
    manifest = DatasetManifest(query="listener", item="artist", entities=entities, splits={})
    return {name: Vocabulary(Folder(folder), manifest, name) for name in entities}


def test_rows_are_found_by_id_before_name(names: dict[str, StoredNames]) -> None:
    assert [names["artist"].find(text) for text in ("72", "99", "77", "-5", "9" * 30)] == [2, 7, None, None, None]
    assert [names["listener"].find(text) for text in ("7", "x y", "-1", "X Y")] == [0, 1, 2, None]


def test_exact_name_is_preferred_to_one_without_accents(names: dict[str, StoredNames]) -> None:
    assert [names["artist"].find(text) for text in ("björk", "BJORK", "radiohead", "bjôrk")] == [1, 2, 0, 1]
    assert names["artist"].find("Portishead") is None


def test_labels_have_the_ids_types(names: dict[str, StoredNames]) -> None:
    assert names["artist"].labels([3, 1, 3]) == {3: RowLabel(73, "The Beatles"), 1: RowLabel(71, "Björk")}
    assert names["listener"].labels([2]) == {2: RowLabel("-1", None)}
    assert names["artist"].labels([]) == {}


def test_search_finds_words_by_their_first_letters(names: dict[str, StoredNames]) -> None:
    assert names["artist"].search("beat", 10) == [3, 4]
    assert names["artist"].search("radio", 10) == [0, 5]
    assert names["artist"].search("radio 4", 10) == [5]
    assert names["artist"].search("beatles THE", 10) == [3]
    assert names["artist"].search("BJÖRK", 2) == [1, 2]
    assert names["artist"].search("radio", 1) == [0]
    assert names["artist"].search("\"'*:^) OR", 10) == []
    assert names["listener"].search("x y", 10) == [1]
    assert names["listener"].search("X", 10) == [1]
    assert names["artist"].search("70", 10) == [0]
    assert names["track"].search("creep", 10) == [5, 0, 2, 4]
    assert names["track"].search("jo", 10) == [1]
