"""docs/errors.md, whose lines are what the program says: tests that provoke a refusal look its line up here.

    message = documented("a shard that was cut off", message)       # fails if the table has another line for it

In a line of the table, ``<n>`` stands for a number and any other ``<word>`` for any text.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
_ROW = re.compile(r"\| (?P<what>[^|]+) \| `(?P<line>.+)` \| (?P<code>\d) \|")
_PLACEHOLDER = re.compile(r"(<[a-z ]+>)")


@dataclass(frozen=True)
class Refusal:
    """What ends a command, and how."""

    line: str
    exit_code: int

    def fits(self, message: str) -> bool:
        """Whether ``message`` is this line."""
        parts = _PLACEHOLDER.split(self.line)
        pattern = "".join(
            re.escape(part) if index % 2 == 0 else r"[\d,.]+" if part == "<n>" else ".*"
            for index, part in enumerate(parts)
        )
        return re.fullmatch(pattern, message) is not None


@cache
def refusals() -> dict[str, Refusal]:
    """The rows of the table, by what was done."""
    rows = [_ROW.fullmatch(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    return {row["what"]: Refusal(row["line"].replace("\\|", "|"), int(row["code"])) for row in rows if row}


def documented(what: str, message: str, exit_code: int = 2) -> str:
    """``message``, which must be the documented line of ``what``, without what each begins with."""
    assert what in refusals(), f"docs/errors.md has no row for '{what}': {message}"
    refusal = refusals()[what]
    assert refusal.fits(message), f"docs/errors.md says of '{what}':\n{refusal.line}\nbut the program says:\n{message}"
    assert refusal.exit_code == exit_code
    return message
