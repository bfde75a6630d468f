"""Words of messages: counts, and the name or path that was probably meant."""

from pathlib import Path

import pytest

from crossfade.base.text import counted, similar_name, similar_path


def test_one_is_singular() -> None:
    assert [counted(number, "row") for number in (0, 1, 2, 1000)] == ["0 rows", "1 row", "2 rows", "1,000 rows"]
    assert counted(2, "query", "queries") == "2 queries"


COLUMNS = ["User Id", "Song Title", "Artist ", "Played"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Song_Title", "Song Title"),
        ("songtitle", "Song Title"),
        ("Sogn Title", "Song Title"),
        ("artist", "Artist "),
        ("USER ID", "User Id"),
        ("item", None),
        ("", None),
    ],
)
def test_name_is_found(name: str, meant: str | None) -> None:
    assert similar_name(name, COLUMNS) == meant


def test_path_is_found_by_its_name_without_the_extension() -> None:
    paths = [Path("plays.yml"), Path("jobs/plays.yaml"), Path("jobs/lastfm.yaml")]
    assert similar_path("play", paths) == Path("plays.yml")
    assert similar_path("last-fm", paths) == Path("jobs/lastfm.yaml")
    assert similar_path("nowhere", paths) is None
