"""How ``fit`` reads dirty events.

options = read_options({"on_bad_line": "skip", "timestamp_format": ["iso", "%d/%m/%Y"]})
prepare(PrepareOptions(..., **options), reporter)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from crossfade.api.arguments import shown
from crossfade.base.errors import InputError
from crossfade.base.text import similar_name
from crossfade.cli.options.parsing import parse_on_bad_line, parse_on_missing, parse_share
from crossfade.trainer.prepare.events import IdChoice
from crossfade.trainer.prepare.faults import MAX_BAD
from crossfade.trainer.prepare.input_files import FORMATS

_TEXT_OPTIONS = ("delimiter", "format", "id_type")
_CHOICES: Mapping[str, Sequence[str]] = {"format": FORMATS, "id_type": get_args(IdChoice)}
_OF_FILES = ("delimiter", "format")
READ_OPTIONS = (*_TEXT_OPTIONS, "on_bad_line", "on_missing", "max_bad", "timestamp_format")
"""The keys of ``read``: options of ``crossfade prepare``."""


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
    for key in (*_TEXT_OPTIONS, "on_bad_line", "on_missing"):
        if read.get(key) is not None and not isinstance(read[key], str):
            raise InputError(f'read={{"{key}": {shown(read[key])}}}: expected text')
    on_bad_line, quarantine = parse_on_bad_line(read.get("on_bad_line"))
    return {
        **{key: _chosen(key, read[key]) for key in _TEXT_OPTIONS if read.get(key) is not None},
        "on_bad_line": on_bad_line,
        "quarantine": quarantine,
        "on_missing": parse_on_missing(read.get("on_missing")),
        "max_bad": MAX_BAD if read.get("max_bad") is None else parse_share("--max-bad", read["max_bad"]),
        "timestamp_formats": _formats(read.get("timestamp_format") or ()),
    }


def _chosen(key: str, value: str) -> str:
    allowed = _CHOICES.get(key, (value,))
    if value not in allowed:
        raise InputError(f'read={{"{key}": {shown(value)}}}: expected {" or ".join(map(repr, allowed))}')
    return value


def _formats(given: object) -> list[str]:
    formats = [given] if isinstance(given, str) else given
    if not isinstance(formats, Sequence) or not all(isinstance(text, str) for text in formats):
        raise InputError(f'read={{"timestamp_format": {shown(given)}}}: expected a format, or a list of several')
    return list(formats)
