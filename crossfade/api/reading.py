"""How ``fit`` reads dirty events, and messages about them in the words of Python.

options = read_options({"on_bad_line": "skip", "timestamp_format": ["iso", "%d/%m/%Y"]})
with python_messages(folder / "events.parquet"):
    prepare(PrepareOptions(..., **options), reporter)
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crossfade.kvstore.errors import InputError
from crossfade.kvstore.similar_names import similar_name
from crossfade.options.parsing import parse_on_bad_line, parse_on_missing, parse_share
from crossfade.trainer.prepare.faults import MAX_BAD, EventFaultsError

_TEXT_OPTIONS = ("delimiter", "format", "id_type")
_OF_FILES = ("delimiter", "format")
READ_OPTIONS = (*_TEXT_OPTIONS, "on_bad_line", "on_missing", "max_bad", "timestamp_format")
"""The keys of ``read``: options of ``crossfade prepare``."""
_ARGUMENTS = {
    "--query": "query",
    "--item": "item",
    "--weight": "weight",
    "--timestamp": "timestamp",
    "--names": "names",
    "--train": "plays",
    "--hold-out-valid": "valid",
    "--hold-out-test": "test",
    "--seed": "seed",
}
_FORMAT = r"(?:iso|epoch-\w+|'[^']*')"
_OPTION = re.compile(
    rf"--timestamp-format (?P<formats>{_FORMAT}(?: {_FORMAT})*)"
    r"|--(?P<key>on-bad-line|on-missing|id-type|format|max-bad) (?P<value>[a-z]\w*|\d+%)"
    r"|--(?P<named>query|item) (?P<column>NAME=COLUMN)"
    r"|(?P<option>(?<![\w-])--[a-z][a-z-]+)"
)
_QUARANTINE = " (quarantine=FILE moves them to a file)"
_MAX_KINDS = 3


def read_options(read: Mapping[str, Any], of_files: bool = True) -> dict[str, Any]:
    """Return the keyword arguments of ``PrepareOptions`` that ``read`` stands for; ``of_files``: not of a data frame.

    Raises:
        InputError: a key or a value is invalid.
    """
    for key in read:
        if key not in READ_OPTIONS:
            near = similar_name(key, READ_OPTIONS)
            hint = f"did you mean '{near}'?" if near else f"expected {', '.join(READ_OPTIONS)}"
            raise InputError(f"read: unknown key '{key}'; {hint}")
        if key in _OF_FILES and not of_files:
            raise InputError(f"read: '{key}' describes files, and plays is a data frame; leave it out")
    formats = read.get("timestamp_format", ())
    with python_messages(None):
        on_bad_line, quarantine = parse_on_bad_line(read.get("on_bad_line"))
        on_missing = parse_on_missing(read.get("on_missing"))
        max_bad = MAX_BAD if read.get("max_bad") is None else parse_share("--max-bad", read["max_bad"])
    return {
        **{key: read[key] for key in _TEXT_OPTIONS if key in read},
        "on_bad_line": on_bad_line,
        "quarantine": quarantine,
        "on_missing": on_missing,
        "max_bad": max_bad,
        "timestamp_formats": [formats] if isinstance(formats, str) else formats,
    }


@contextmanager
def python_messages(events: Path | None) -> Iterator[None]:
    """Reword errors of the block: by arguments of ``fit``, with the first faults, and the file ``events`` as plays."""
    reword = _wording(events)
    try:
        yield
    except EventFaultsError as error:
        first = "; ".join(error.kinds[:_MAX_KINDS])
        more = f"; and {len(error.kinds) - _MAX_KINDS} more kinds" if len(error.kinds) > _MAX_KINDS else ""
        choice = f", or leave out {error.choice}" if error.choice else ""
        correct = "correct the values" if events is not None else "correct the files"
        raise InputError(reword(f"the events have {error.count:,} faults: {first}{more}; {correct}{choice}")) from error
    except InputError as error:
        error.args = (reword(str(error)),)
        raise


def _wording(events: Path | None) -> Callable[[str], str]:
    def reword(message: str) -> str:
        if events is not None:
            message = message.replace(str(events), "plays")
        return _OPTION.sub(_python_name, message.replace(_QUARANTINE, ""))

    return reword


def _python_name(match: re.Match[str]) -> str:
    if match["formats"]:
        return f'read={{"timestamp_format": {shlex.split(match["formats"])}}}'
    if match["key"]:
        return f'read={{"{match["key"].replace("-", "_")}": "{match["value"]}"}}'
    if match["named"]:
        return f'{match["named"]}="{match["column"]}"'
    name = match["option"].removeprefix("--").replace("-", "_")
    return _ARGUMENTS.get(match["option"]) or (f'read["{name}"]' if name in READ_OPTIONS else name)
