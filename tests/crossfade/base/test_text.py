"""Words of messages: counts, and the name or path that was probably meant."""

import re
from pathlib import Path

import pytest

from crossfade.base.text import counted, similar_name, similar_path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("crossfade", "trainer", "kvstore", "deploy")


def test_one_is_singular() -> None:
    assert [counted(number, "row") for number in (0, 1, 2, 1000)] == ["0 rows", "1 row", "2 rows", "1,000 rows"]
    assert counted(2, "query", "queries") == "2 queries"


@pytest.mark.slow
def test_no_message_writes_a_plural_in_parentheses() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"[a-z]\(s\)", line)
    ]
    assert found == []


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
