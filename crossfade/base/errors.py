"""The exception tree of Crossfade. Each error carries the exit code of the command that it ends.

CrossfadeError                  1   the run failed
├── DivergedError               1   a gradient or a loss is not finite
├── StoreError                  1   the key-value store rejected a request or lost data
├── ClusterError                1   a process of the job died, raised or stopped responding
├── CheckpointError             1   a checkpoint cannot be written or read; 2 if it is corrupt or incomplete
├── StorageUnavailableError     1   storage is unreachable or too busy, after all retries
├── CloudError                  1   AWS cannot serve the request now (deploy/aws/aws_errors.py)
└── InputError                  2   the user's input is wrong
    ├── OptionError             2   an option has a value that cannot be used
    ├── CloudRequestError       2   AWS rejects the request (deploy/aws/aws_errors.py)
    └── MissingExtraError       2   an optional package is not installed

A message is data: the arguments of an error are strings and options, nested as they were put together,
``InputError(f"{path}: exists; name another with ", Option("run_dir"))``. Each face words the options in its own way:
``--run-dir`` on the command line, ``run_dir`` in Python.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

_MAX_NAMES, _MAX_NAME_LENGTH = 20, 60
_WRITTEN_WITH = "\u200c\u200d\u3000"
"""What names are written with that Python does not call printable: joiners in Persian, in Indic scripts, and in emoji;
the space between Japanese names."""
_HALF_LENGTH = 980
"""Letters of a message that are shown from its beginning and from its end, which has how to fix it."""


@dataclass(frozen=True)
class Option:
    """An option in a message: its name and, unless it is empty, its value."""

    name: str
    value: object = ""

    def __str__(self) -> str:
        """Return the option in plain words, as files have it."""
        return plain_words(self.name, self.value)


Text = str | Option | Sequence["Text"]
"""A message, or a part of one: strings and options, which are joined without anything between them."""
OptionWords = Callable[[str, Any], str]
"""Returns what a face calls an option, given its name and, unless it is empty, its value."""


def command(verb: str, *words: str, **options: str | bool) -> str:
    """Return a command to type, with its options, for a message: ``command("prepare", base="DATA")``."""
    typed = [f"--{name.replace('_', '-')}{'' if value is True else f' {value}'}" for name, value in options.items()]
    return f"'crossfade {' '.join((verb, *words, *typed))}'"


def as_typed(name: str, value: Any) -> str:
    """Return an option as the command line takes it, for logs, files, and messages of other processes."""
    return " ".join(filter(None, [f"--{name.replace('_', '-')}", str(value)]))


def plain_words(name: str, value: Any) -> str:
    """Return an option by its plain name, for files and for messages that no face has worded."""
    return f"{name} {value}" if str(value) else name


def parts(text: Text) -> tuple[str | Option, ...]:
    """Return the strings and options of ``text``, in order."""
    if isinstance(text, str | Option):
        return (text,)
    return tuple(part for each in text for part in parts(each))


def join(texts: Iterable[Text], separator: Text) -> Text:
    """Return ``texts`` with ``separator`` between them, as ``str.join`` does."""
    return [part for text in texts for part in (separator, text)][1:]


def worded(text: Text, words: OptionWords = plain_words) -> str:
    """Return ``text`` in printable form, with its options named by ``words``."""
    named = (part if isinstance(part, str) else words(part.name, part.value) for part in parts(text))
    return escape_unprintable("".join(named))


def reason_of(error: Exception) -> str:
    """Return the message of ``error`` in one line, of an error of the system without the path; never empty."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


class CrossfadeError(Exception):
    """The run failed. The message states what was found, what was expected and how to fix it.

    ``details`` are lines to show before the message.
    """

    exit_code = 1
    details: Sequence[Text] = ()

    def __init__(self, *message: Text) -> None:
        """Set the message: ``args`` are its parts, for faces and for another error that repeats it."""
        super().__init__(*message)

    def __str__(self) -> str:
        """Return the message in one printable line: text from corrupt files must not control or fill the terminal."""
        return self.worded(plain_words)

    def worded(self, words: OptionWords) -> str:
        """Return the message as ``__str__`` does, with options named by ``words``."""
        text = worded(self.args, words)
        return text if len(text) <= 2 * _HALF_LENGTH else f"{text[:_HALF_LENGTH]} … {text[-_HALF_LENGTH:]}"


class DivergedError(CrossfadeError):
    """A gradient, a loss or a value of a table is not finite; ``row`` is one of its rows, if the error is in rows."""

    def __init__(self, *message: Text, row: int | None = None) -> None:
        super().__init__(*message)
        self.row = row


class StoreError(CrossfadeError):
    """The key-value store rejected a request or lost data."""


class ClusterError(CrossfadeError):
    """A process of the job died, raised or stopped responding."""


class CheckpointError(CrossfadeError):
    """A checkpoint cannot be written, or is corrupt, incomplete or incompatible; the message names the file.

    ``checkpoint`` is the URI of a checkpoint that must not be used again because it is corrupt, which is wrong input.
    It is None where the checkpoint may be intact, as when storage is unreachable.
    """

    def __init__(self, *message: Text, checkpoint: str | None = None) -> None:
        super().__init__(*message)
        self.checkpoint = checkpoint
        if checkpoint is not None:
            self.exit_code = InputError.exit_code


class StorageUnavailableError(CrossfadeError):
    """Storage is unreachable or too busy, after all retries. A later attempt may succeed."""


class InputError(CrossfadeError):
    """The user's input is wrong: a file, an option, the job file, the machine's size."""

    exit_code = 2


class OptionError(InputError):
    """An option has a value that cannot be used, or is missing.

    Attributes:
        field: the name of the option and, if one of its values is wrong, the place of that, from 0.
        found: its value; empty where it does not matter.
        problem: what is wrong with it.
        expected: what would be right.
        fix: what to do about it.
    """

    def __init__(
        self,
        field: str | Sequence[str | int],
        *,
        found: object = "",
        problem: Text = "",
        expected: Text = "",
        fix: Text = "",
    ) -> None:
        """Describe the error; the message has the parts that are given, in this order."""
        self.field: tuple[str | int, ...] = (field,) if isinstance(field, str) else tuple(field)
        self.found, self.problem, self.expected, self.fix = found, problem, expected, fix
        said = [text for text in (problem, expected and ("expected ", expected), fix) if text]
        super().__init__(Option(str(self.field[0]), found), ": ", join(said, "; "))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make the error again in another process, which gets its parts."""
        said = partial(OptionError, problem=self.problem, expected=self.expected, fix=self.fix)
        return partial(said, found=self.found), (self.field,)


_MXNET_EXTRAS = ("mxnet", "horovod")


class MissingExtraError(InputError):
    """An optional package is not installed; the message names the extra that installs it, or other instructions."""

    def __init__(self, package: str, extra: str, purpose: Text, how: str | None = None) -> None:
        """Name the missing ``package`` and its ``purpose``; ``how`` replaces the default 'pip install' instructions."""
        how = how or f"pip install 'crossfade[{extra}]'"
        where = " (only on Linux on x86-64 with Python 3.11)" if extra in _MXNET_EXTRAS else ""
        super().__init__(purpose, f" needs the package '{package}', which is not installed here: {how}{where}")


def escape_unprintable(text: str) -> str:
    """Replace characters of ``text`` that control a terminal or are not seen by their Python escapes.

    These are control characters, line ends too, those that change the direction of text, and unassigned ones.
    """
    if text.isprintable():
        return text
    return "".join(letter if _is_shown(letter) else ascii(letter)[1:-1] for letter in text)


def to_json_line(value: object) -> str:
    """Return ``value`` as JSON in one line, in which only characters that ``escape_unprintable`` keeps are literal."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(letter if _is_shown(letter) else json.dumps(letter)[1:-1] for letter in text)


def _is_shown(letter: str) -> bool:
    return letter.isprintable() or letter in _WRITTEN_WITH


def format_names(names: Iterable[object]) -> str:
    """Join ``names`` for a message, bounded in length: at most 20 names of at most 60 characters each."""
    texts = [str(name) for name in names]
    shown = ", ".join(
        text if len(text) <= _MAX_NAME_LENGTH else f"{text[:_MAX_NAME_LENGTH]}…" for text in texts[:_MAX_NAMES]
    )
    return shown if len(texts) <= _MAX_NAMES else f"{shown} … ({len(texts)} in all)"
