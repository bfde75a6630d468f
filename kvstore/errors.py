"""The one exception tree of Crossfade. Each error knows the exit code of the command that it ends.

CrossfadeError            1   the run failed
├── DivergedError         1   a gradient or a loss is no longer finite
├── StoreError            1   the key-value store refused or lost something
├── ClusterError          1   a process of the job died, raised or fell silent
├── CheckpointError       1   a checkpoint cannot be written, or is damaged, partial or foreign
├── UnreachableError      1   storage could not be read, for now
├── CloudError            1   AWS cannot do now what was asked: no capacity, too many requests, no answer
└── InputError            2   the user's input is wrong
    ├── RefusedError      2   AWS refuses what was asked: credentials, permission, quota, region, something missing
    └── MissingExtraError 2   an optional package is not installed
"""

from collections.abc import Iterable
from typing import Literal

CloudErrorKind = Literal["capacity", "throttled", "unreachable", "fault"]
RefusedErrorKind = Literal["credentials", "permission", "region", "quota", "missing", "request"]
_NAMES, _NAME_LETTERS = 20, 60


class CrossfadeError(Exception):
    """The run failed. The message says what was found, what was expected and how to mend it."""

    exit_code = 1

    def __str__(self) -> str:
        """The message in one line: what damaged files put into it can neither break it nor control a terminal."""
        return escape_unprintable(super().__str__())


class DivergedError(CrossfadeError):
    """A gradient or a loss is no longer finite."""


class StoreError(CrossfadeError):
    """The key-value store refused or lost something."""


class ClusterError(CrossfadeError):
    """A process of the job died, raised or fell silent."""


class CheckpointError(CrossfadeError):
    """A checkpoint cannot be written, or is damaged, partial or foreign; the message names the file and the reason.

    ``checkpoint`` is the URI of one that must not be used again, because it is damaged; None if that is not known.
    """

    def __init__(self, message: str, checkpoint: str | None = None) -> None:
        """Say ``message``; ``checkpoint`` is the one that is damaged."""
        super().__init__(message)
        self.checkpoint = checkpoint


class StorageUnavailableError(CrossfadeError):
    """Storage could not be read, after all tries: it is away, or too busy. Another time it may do better."""


class CloudError(CrossfadeError):
    """AWS cannot do now what was asked. Another time, or with another instance type, it may.

    ``code`` is AWS's own name of the error, such as InsufficientInstanceCapacity; ``kind`` is what it comes to.
    """

    def __init__(self, message: str, kind: CloudErrorKind, code: str = "") -> None:
        """Say ``message``."""
        super().__init__(message)
        self.kind, self.code = kind, code


class InputError(CrossfadeError):
    """The user's input is wrong: a file, an option, the job file, the machine's size."""

    exit_code = 2


class CloudRequestError(InputError):
    """AWS refuses what was asked, and will until the user mends something; ``code`` and ``kind`` as of CloudError."""

    def __init__(self, message: str, kind: RefusedErrorKind, code: str = "") -> None:
        """Say ``message``."""
        super().__init__(message)
        self.kind, self.code = kind, code


class MissingExtraError(InputError):
    """An optional package is not installed; the message names the extra that brings it, or how else it is had."""

    def __init__(self, package: str, extra: str, purpose: str, how: str | None = None) -> None:
        """Say which ``package`` is missing for which ``purpose``; the ``extra`` brings it, unless ``how`` says how."""
        how = how or f"pip install 'crossfade[{extra}]'"
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed here: {how} "
            "(Linux on x86-64, Python 3.11)"
        )


def escape_unprintable(text: str) -> str:
    """``text`` with whatever is no letter, sign or space, such as a line end, as an escape."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def format_names(names: Iterable[object]) -> str:
    """``names`` for a message: all of a few, the first of many, and none at length."""
    texts = [str(name) for name in names]
    shown = ", ".join(text if len(text) <= _NAME_LETTERS else f"{text[:_NAME_LETTERS]}…" for text in texts[:_NAMES])
    return shown if len(texts) <= _NAMES else f"{shown} … ({len(texts)} in all)"
