"""Messages in the words of Python: arguments instead of the options of commands.

@in_python
def recommend(...): ...

with fit_words(folder / "events.parquet"):          # the data frame ``plays`` was written there
    prepare(...)
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from crossfade.api.arguments import shown
from crossfade.api.fit_options import PREPARED_AS, READ
from crossfade.base.errors import CrossfadeError, InputError, OptionWords, worded
from crossfade.trainer.prepare.faults import EventFaultsError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_OF_FIT = {option: argument for argument, option in PREPARED_AS.items()} | {"out": "TMPDIR"}
"""What options of a preparation are called in ``fit``, unless an argument has their own name."""
_ARGUMENTS = {"overwrite": "overwrite=True", "resume": "resume=True", "work_dir": "TMPDIR"}
"""What options without a value are called in Python, unless their own name is that of an argument."""
_MAX_KINDS = 3


def in_python(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Have the errors of ``function`` worded by arguments."""

    @functools.wraps(function)
    def reworded(*positional: Parameters.args, **named: Parameters.kwargs) -> Result:
        with _words(python_word):
            return function(*positional, **named)

    return reworded


@contextmanager
def fit_words(events: Path | None) -> Iterator[None]:
    """Word errors of the block by arguments of ``fit``, with the first faults, and the file ``events`` as plays."""
    try:
        with _words(_fit_word, events):
            yield
    except EventFaultsError as error:
        kinds = [worded(line, _fit_word) for line in error.details]
        first = "; ".join(kinds[:_MAX_KINDS])
        more = f"; and {len(kinds) - _MAX_KINDS} more kinds" if len(kinds) > _MAX_KINDS else ""
        choice = f", or leave out {worded(error.choice, _fit_word)}" if error.choice else ""
        correct = "correct the values" if events is not None else "correct the files"
        message = f"the events have {error.count:,} faults: {first}{more}; {correct}{choice}"
        with _words(_fit_word, events):
            raise InputError(message) from error


@contextmanager
def _words(words: OptionWords, events: Path | None = None) -> Iterator[None]:
    try:
        yield
    except CrossfadeError as error:
        message = error.worded(words)
        error.args = (message if events is None else message.replace(str(events), "plays"),)
        raise


def python_word(name: str, value: object) -> str:
    """Return an argument, with its value."""
    return _ARGUMENTS.get(name, name) if value == "" else f"{name}={shown(value)}"


def _fit_word(name: str, value: object) -> str:
    """Return an argument of ``fit``, with its value."""
    if name in READ:
        values = shlex.split(value) if name == "timestamp_format" and isinstance(value, str) else value
        return f"read[{name!r}]" if value == "" else f"read={{{name!r}: {values!r}}}"
    return python_word(_OF_FIT.get(name, name), value)
