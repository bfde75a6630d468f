"""Put a lack of memory into words, whatever error reports it.

lack_of_memory(error)       # "not enough memory: Unable to allocate 3.73 TiB ..."; None: another error
"""

from __future__ import annotations

import errno

from crossfade.base.errors import command

_NO_THREAD = "can't start new thread"


def lack_of_memory(error: BaseException) -> str | None:
    """Return what to report where ``error``, or what caused it, is a lack of memory; None if it is not."""
    cause: BaseException | None = error
    seen: set[int] = set()  # an error may be, indirectly, its own cause
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if _is_lack_of_memory(cause):
            what = " ".join(str(cause).split()) or "an allocation failed"
            return f"not enough memory: {what}; {command('plan')} has what a job needs"
        cause = cause.__cause__
    return None


def _is_lack_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and _NO_THREAD in str(error))
    )
