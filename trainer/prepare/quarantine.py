r"""Keep the lines that a preparation leaves out, with their places and problems, in a file of JSON lines.

quarantine = Quarantine(Path("bad.jsonl"), work, overwrite=False)
quarantine.write("plays.csv", "line", 17, "has 4 fields, but the header has 3; fix the line", b"7,Creep,3,x\n")
quarantine.publish()            # bad.jsonl appears, completely
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import IO

from crossfade.base.errors import CrossfadeError, OptionError, option_named, plain
from crossfade.base.io.output import staged_file


class Quarantine:
    """Collects lines in the folder ``work`` and moves them to the file ``target`` at the end."""

    def __init__(self, target: Path, work: Path, overwrite: bool) -> None:
        """Check that ``target`` can be written.

        A file that exists is only replaced with ``overwrite``, or if every line of it is as ``write`` writes it.

        Raises:
            InputError: it cannot.
        """
        self._target = target
        self._collected = work / "quarantine.jsonl"
        if target.exists() and not overwrite and not _is_quarantine(target):
            raise OptionError(
                "on_bad_line",
                found=f"quarantine={target}",
                problem=f"exists already, and not every line of it was written by {option_named('on_bad_line')}",
                fix=f"name another file, or add {option_named('overwrite')}",
            )
        if not target.parent.is_dir():
            raise OptionError(
                "on_bad_line",
                found=f"quarantine={target}",
                problem=f"there is no folder '{target.parent}'",
                fix="create it first",
            )
        self._file: IO[str] = self._collected.open("w", encoding="utf-8")

    def write(self, file: str, unit: str, number: int, problem: str, text: bytes) -> None:
        """Add the ``text`` of a line or row (the ``unit``) of ``file``, ``number`` counting from 1."""
        try:
            decoded, is_utf8 = text.decode(), True
        except UnicodeDecodeError:  # such bytes become escapes, which Python's surrogateescape turns back into bytes
            decoded, is_utf8 = text.decode("utf-8", "surrogateescape"), False
        entry = {"file": file, unit: number, "problem": plain(problem), "text": decoded.rstrip("\r\n")}
        self._file.write(json.dumps(entry, ensure_ascii=not is_utf8) + "\n")

    def close(self) -> None:
        """Close the file of the collected lines, which is deleted with its folder unless it was published."""
        self._file.close()

    def publish(self) -> None:
        """Move the collected lines to their file, which may be empty.

        Raises:
            CrossfadeError: it cannot be written.
        """
        self._file.close()
        try:
            with staged_file(self._target) as partial:
                shutil.move(self._collected, partial)
        except OSError as error:
            raise CrossfadeError(
                f"{option_named('on_bad_line', f'quarantine={self._target}')}: cannot be written: "
                f"{error.strerror or error}; name another file"
            ) from error


def _is_quarantine(path: Path) -> bool:
    """Return whether each line of the file is an entry of a quarantine."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return all(map(_is_entry, file))


def _is_entry(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and entry.keys() - {"line", "row"} == {"file", "problem", "text"}
