"""The exception tree of Crossfade. Each error carries the exit code of the command that it ends.

CrossfadeError                  1   the run failed
├── DivergedError               1   a gradient or a loss is not finite
├── StoreError                  1   the key-value store rejected a request or lost data
├── ClusterError                1   a process of the job died, raised or stopped responding
├── CheckpointError             1   a checkpoint cannot be written, or is corrupt, incomplete or incompatible
├── StorageUnavailableError     1   storage is unreachable or too busy, after all retries
├── CloudError                  1   AWS cannot serve the request now: no capacity, throttling, no answer
└── InputError                  2   the user's input is wrong
    ├── CloudRequestError       2   AWS rejects the request: credentials, permission, quota, region, missing resource
    └── MissingExtraError       2   an optional package is not installed
"""

import json
from collections.abc import Iterable
from typing import Literal

CloudErrorKind = Literal["capacity", "throttled", "unreachable", "fault"]
CloudRequestErrorKind = Literal["credentials", "permission", "region", "quota", "missing", "request"]
_MAX_NAMES, _MAX_NAME_LENGTH = 20, 60
_WRITTEN_WITH = "\u200c\u200d\u3000"
"""What names are written with that Python does not call printable: joiners in Persian, in Indic scripts, and in emoji;
the space between Japanese names."""
_HALF_LENGTH = 980
"""Letters of a message that are shown from its beginning and from its end, which has how to fix it."""


class CrossfadeError(Exception):
    """The run failed. The message states what was found, what was expected and how to fix it."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the message in one printable line: text from corrupt files must not control or fill the terminal."""
        text = escape_unprintable(super().__str__())
        return text if len(text) <= 2 * _HALF_LENGTH else f"{text[:_HALF_LENGTH]} … {text[-_HALF_LENGTH:]}"


class DivergedError(CrossfadeError):
    """A gradient, a loss or a value of a table is not finite; ``row`` is one of its rows, if the error is in rows."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class StoreError(CrossfadeError):
    """The key-value store rejected a request or lost data."""


class ClusterError(CrossfadeError):
    """A process of the job died, raised or stopped responding."""


class CheckpointError(CrossfadeError):
    """A checkpoint cannot be written, or is corrupt, incomplete or incompatible; the message names the file.

    ``checkpoint`` is the URI of a checkpoint that must not be used again because it is corrupt. It is None where the
    checkpoint may be intact, as when storage is unreachable.
    """

    def __init__(self, message: str, checkpoint: str | None = None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class StorageUnavailableError(CrossfadeError):
    """Storage is unreachable or too busy, after all retries. A later attempt may succeed."""


class CloudError(CrossfadeError):
    """AWS cannot serve the request now. A later attempt, or another instance type, may succeed.

    ``code`` is AWS's own error code, such as InsufficientInstanceCapacity; ``kind`` is its category.
    """

    def __init__(self, message: str, kind: CloudErrorKind, code: str = "") -> None:
        super().__init__(message)
        self.kind, self.code = kind, code


class InputError(CrossfadeError):
    """The user's input is wrong: a file, an option, the job file, the machine's size."""

    exit_code = 2


class CloudRequestError(InputError):
    """AWS rejects the request until the user fixes something; ``code`` and ``kind`` are as in ``CloudError``."""

    def __init__(self, message: str, kind: CloudRequestErrorKind, code: str = "") -> None:
        super().__init__(message)
        self.kind, self.code = kind, code


_MXNET_EXTRAS = ("mxnet", "horovod")


class MissingExtraError(InputError):
    """An optional package is not installed; the message names the extra that installs it, or other instructions."""

    def __init__(self, package: str, extra: str, purpose: str, how: str | None = None) -> None:
        """Name the missing ``package`` and its ``purpose``; ``how`` replaces the default 'pip install' instructions."""
        how = how or f"pip install 'crossfade[{extra}]'"
        where = " (only on Linux on x86-64 with Python 3.11)" if extra in _MXNET_EXTRAS else ""
        super().__init__(f"{purpose} needs the package '{package}', which is not installed here: {how}{where}")


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
