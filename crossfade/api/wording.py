"""Messages in the words of Python: arguments instead of the options of commands.

@in_python
def recommend(...): ...

with python_words(folder / "events.parquet"):       # the data frame ``plays`` was written there
    prepare(...)
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from crossfade.api.arguments import shown
from crossfade.base.errors import CrossfadeError, InputError, OptionError, OptionWords
from crossfade.trainer.prepare.faults import EventFaultsError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_ARGUMENTS = {
    "--train": "plays",
    "--events": "plays",
    "--hold-out-valid": "valid",
    "--hold-out-test": "test",
    "--hold-out": "valid",
    "--overwrite": "overwrite=True",
    "--resume": "resume=True",
    "--work-dir": "TMPDIR",
}
"""What options are called in Python, unless their own name is that of an argument."""
_READ = ("delimiter", "format", "id_type", "on_bad_line", "on_missing", "max_bad", "timestamp_format")
_PHRASES = {
    " (quarantine=FILE moves them to a file)": "",
    "with --out and, for temporary files, with --work-dir (or TMPDIR); nothing was written": "by TMPDIR",
    "raise --memory, lower --threads, or name a larger disk with --work-dir DIR": "name a larger disk by TMPDIR",
    "(--events - --format csv)": "of crossfade prepare",
}
"""Sentences of commands that have another form in Python."""
_FORMAT = r"(?:iso|epoch-\w+|'[^']*')"
_OPTION = re.compile(
    rf"(?P<command>'crossfade [^']*')"
    rf"|--timestamp-format (?P<formats>{_FORMAT}(?: {_FORMAT})*)"
    r"|--(?P<key>on-bad-line|on-missing|id-type|format) (?P<value>[a-z]\w*)"
    r"|--max-bad (?P<share>[\d.]+%)"
    r"|--(?P<named>query|item) (?P<column>NAME=COLUMN)"
    r"|--(?P<split>hold-out-valid|hold-out-test) (?P<how>random:[\d.]+|last-\d+|none)(?![\w.])"
    r"|--set (?P<setting>[\w.]+)=(?P<chosen>\S+?)(?=[:;,]?(?:\s|$))"
    r"|(?P<option>(?<![\w-])--[a-z][a-z-]*)"
)
_MAX_KINDS = 3


def in_python(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Have the errors of ``function`` worded by arguments."""

    @functools.wraps(function)
    def worded(*positional: Parameters.args, **named: Parameters.kwargs) -> Result:
        with python_words():
            return function(*positional, **named)

    return worded


@contextmanager
def python_words(events: Path | None = None) -> Iterator[None]:
    """Reword errors of the block: by arguments, with the first faults, and the file ``events`` as plays."""
    try:
        yield
    except EventFaultsError as error:
        first = "; ".join(error.kinds[:_MAX_KINDS])
        more = f"; and {len(error.kinds) - _MAX_KINDS} more kinds" if len(error.kinds) > _MAX_KINDS else ""
        choice = f", or leave out {error.choice}" if error.choice else ""
        correct = "correct the values" if events is not None else "correct the files"
        message = f"the events have {error.count:,} faults: {first}{more}; {correct}{choice}"
        raise InputError(_reworded(message, events)) from error
    except CrossfadeError as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (_reworded(error.worded(_words_of(error)), events), *error.args[1:])
        raise


def _words_of(error: CrossfadeError) -> OptionWords:
    """Return what names the arguments in ``error``: the value that was given, as Python shows it."""
    if not isinstance(error, OptionError):
        return python_word
    found = error.found
    return lambda name, value: f"{name}={shown(found)}" if value and value == str(found) else python_word(name, value)


def python_word(name: str, value: str) -> str:
    """Return an argument, with its value."""
    return f"{name}={value!r}" if value else name


def _reworded(message: str, events: Path | None) -> str:
    if events is not None:
        message = message.replace(str(events), "plays")
    for phrase, in_python_words in _PHRASES.items():
        message = message.replace(phrase, in_python_words)
    return _OPTION.sub(_python_name, message)


def _python_name(match: re.Match[str]) -> str:
    name = (match["option"] or "").removeprefix("--").replace("-", "_")
    how = "None" if match["how"] == "none" else f'"{match["how"]}"'
    forms: dict[str, Callable[[], str]] = {
        "command": lambda: match["command"],  # to be typed into a shell
        "formats": lambda: f'read={{"timestamp_format": {shlex.split(match["formats"])}}}',
        "key": lambda: f'read={{"{match["key"].replace("-", "_")}": "{match["value"]}"}}',
        "share": lambda: f'read={{"max_bad": "{match["share"]}"}}',
        "named": lambda: f'{match["named"]}="{match["column"]}"',
        "split": lambda: f"{_ARGUMENTS['--' + match['split']]}={how}",
        "setting": lambda: f'settings={{"{match["setting"]}": {match["chosen"]}}}',
        "option": lambda: _ARGUMENTS.get(match["option"]) or (f'read["{name}"]' if name in _READ else name),
    }
    return next(form() for group, form in forms.items() if match[group])
