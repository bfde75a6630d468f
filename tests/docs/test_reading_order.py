"""The reading order in docs/architecture.md: at most 14 files, and every name it mentions is in its file."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_ITEM = re.compile(r"^\d+\. \[`(?P<file>[^`]+)`\]\([^)]+\): (?P<text>.*?)(?=^\d+\. |^$)", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"`([A-Za-z_][\w.]*)`")


def reading_order() -> list[tuple[str, list[str]]]:
    """Return the files of the reading order, each with the names that its item mentions."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition("## Reading order\n")[2].partition("\n## ")[0]
    return [
        (item["file"], _NAME.findall(re.sub(r"\[.*?\]\(.*?\)", "", item["text"]))) for item in _ITEM.finditer(section)
    ]


def test_reading_order_has_at_most_14_files() -> None:
    assert 10 <= len(reading_order()) <= 14


def test_names_in_the_reading_order_are_in_their_files() -> None:
    missing = []
    for file, names in reading_order():
        source = (ROOT / file).read_text(encoding="utf-8")
        missing += [
            f"{file}: {name}"
            for name in names
            if not all(re.search(rf"\b{part}\b", source) for part in name.split("."))
        ]
    assert missing == []
