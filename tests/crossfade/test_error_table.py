"""The tables of errors in the documentation: a test provokes each row."""

from pathlib import Path

import pytest
from error_table import TABLE, DocumentedError, documented, documented_errors


@pytest.mark.slow
def test_every_row_is_provoked_by_a_test() -> None:
    tests = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(Path(__file__).resolve().parents[1].rglob("test_*.py"))
    )
    assert len(documented_errors()) > 60
    assert [cause for cause in documented_errors() if f'"{cause}"' not in tests] == []


def test_every_row_is_parsed() -> None:
    rows = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) == len(documented_errors())


def test_differing_message_fails() -> None:
    error = DocumentedError("<file>, line <n>: has <n> fields", 2)
    assert error.matches("e.csv, line 1,234: has 3 fields")
    assert not error.matches("e.csv, line x: has 3 fields")
    assert not error.matches("e.csv, line 3: has 3 fields; fix it")
    with pytest.raises(AssertionError, match="has no row for"):
        documented("nothing of the kind", "x")
