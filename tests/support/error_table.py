"""Look up messages in docs/errors.md, whose tables list the errors of the commands.

    message = documented("a truncated manifest", message)       # fails if the table has another message for it

In a message of the table, ``<n>`` stands for a number and any other ``<word>`` for any text. The table names options as
the command line does; a message may also have their plain names, as errors have them before a face words them.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
_ROW = re.compile(r"\| (?P<cause>[^|]+) \| `(?P<message>.+)` \| (?P<code>\d) \|")
_PLACEHOLDER = re.compile(r"(<[a-z ]+>)")
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]*)")


@dataclass(frozen=True)
class DocumentedError:
    """The message and the exit code of an error."""

    message: str
    exit_code: int

    def matches(self, message: str) -> bool:
        """Return whether ``message`` is the documented one."""
        parts = _PLACEHOLDER.split(_plain(self.message))
        pattern = "".join(
            re.escape(part) if index % 2 == 0 else r"[\d,.]+" if part == "<n>" else ".*"
            for index, part in enumerate(parts)
        )
        return re.fullmatch(pattern, _plain(message)) is not None


def _plain(message: str) -> str:
    """Return ``message`` with the plain names of options: ``work_dir`` for ``--work-dir``."""
    return _FLAG.sub(lambda flag: flag[1].replace("-", "_"), message)


@cache
def documented_errors() -> dict[str, DocumentedError]:
    """Return the rows of the tables by cause."""
    rows = [_ROW.fullmatch(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    return {row["cause"]: DocumentedError(row["message"].replace("\\|", "|"), int(row["code"])) for row in rows if row}


def documented(cause: str, message: str, exit_code: int = 2) -> str:
    """Return ``message``, which must be the documented one of ``cause``, without the prefix of every message."""
    assert cause in documented_errors(), f"docs/errors.md has no row for '{cause}': {message}"
    error = documented_errors()[cause]
    assert error.matches(message), f"docs/errors.md has for '{cause}':\n{error.message}\nbut found:\n{message}"
    assert error.exit_code == exit_code
    return message
