"""Counts in messages."""

import re
from pathlib import Path

from crossfade.base.text import counted

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("crossfade", "trainer", "kvstore", "deploy")


def test_one_is_singular() -> None:
    assert [counted(number, "row") for number in (0, 1, 2, 1000)] == ["0 rows", "1 row", "2 rows", "1,000 rows"]
    assert counted(2, "query", "queries") == "2 queries"


def test_no_message_writes_a_plural_in_parentheses() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"[a-z]\(s\)", line)
    ]
    assert found == []
