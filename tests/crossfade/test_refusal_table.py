"""The table of refusals in the documentation: each row is held by a test that provokes it."""

from pathlib import Path

import pytest
from refusal_table import TABLE, Refusal, documented, refusals


def test_every_row_is_provoked_by_a_test() -> None:
    tests = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(Path(__file__).resolve().parents[1].rglob("test_*.py"))
    )
    assert len(refusals()) > 60
    assert [what for what in refusals() if f'"{what}"' not in tests] == []


def test_every_row_is_read() -> None:
    rows = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) == len(refusals())


def test_a_line_that_is_another_one_is_noticed() -> None:
    refusal = Refusal("<file>, line <n>: has <n> fields", 2)
    assert refusal.fits("e.csv, line 1,234: has 3 fields")
    assert not refusal.fits("e.csv, line x: has 3 fields")
    assert not refusal.fits("e.csv, line 3: has 3 fields; mend it")
    with pytest.raises(AssertionError, match="has no row for"):
        documented("nothing of the kind", "x")
