"""Address space that is limited, as by ``ulimit -v``: check it before a command starts, and report when it runs out.

    check_address_space("train")     # InputError: ... has 0.5 GiB of address space (ulimit -v), and needs 2.6 GiB
    lack_of_memory(error)            # "not enough memory: Unable to allocate 3.73 TiB ..."; None: another error

Libraries that Crossfade uses abort the process, or wait forever, where they cannot reserve memory for themselves.
"""

from __future__ import annotations

import errno
import os
import sys

from crossfade.base.errors import InputError, command

_GIB = 2**30
_COMMAND_BYTES = round(2.5 * _GIB)
"""Address space that libraries reserve, of which a small part is used: measured with two threads, and rounded up."""
_ROLE_BYTES = round(3.5 * _GIB)
"""The same of a process that also loads MXNet."""
_THREAD_BYTES = 64 * 2**20
"""A stack, buffers, and an arena of the allocator for each thread."""
_ROLES = frozenset({"scheduler", "server", "worker"})
_LIGHT_COMMANDS = frozenset({"agent", "checkpoints", "dashboard", "doctor", "plan", "schema", "status", "submit"})
"""Commands that load no data. The roles that an agent starts check for themselves."""
_NO_THREAD = "can't start new thread"


def check_address_space(command: str) -> None:
    """Check that this process may reserve what ``command`` needs before it has read any data.

    Raises:
        InputError: it may not.
    """
    limit = _limit()
    if limit is None or command in _LIGHT_COMMANDS:
        return
    base = _ROLE_BYTES if command in _ROLES else _COMMAND_BYTES
    needed = base + _THREAD_BYTES * len(os.sched_getaffinity(0))
    if limit < needed:
        raise InputError(
            f"crossfade {command} needs {needed / _GIB:.1f} GiB of address space, besides its data, and this process "
            f"has {limit / _GIB:.1f} GiB: raise the limit, as with 'ulimit -v unlimited', and limit memory by a cgroup "
            "instead, as containers and systemd do"
        )
    _reserve_matrix_buffers()


def lack_of_memory(error: BaseException) -> str | None:
    """Return what to report where ``error``, or what caused it, is a lack of memory; None if it is not."""
    cause: BaseException | None = error
    seen: set[int] = set()  # an error may be, indirectly, its own cause
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if _is_lack_of_memory(cause):
            limit = _limit()
            what = " ".join(str(cause).split()) or "an allocation failed"
            where = "" if limit is None else f"; this process is limited to {limit / _GIB:.1f} GiB (ulimit -v)"
            return f"not enough memory: {what}{where}; {command('plan')} has what a job needs"
        cause = cause.__cause__
    return None


def _is_lack_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and _NO_THREAD in str(error))
    )


def _limit() -> int | None:
    """Return the limit of this process's address space in bytes; None if there is none."""
    if not sys.platform.startswith("linux"):
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _reserve_matrix_buffers() -> None:
    """Multiply matrices once, since OpenBLAS reserves buffers then: later, without memory, it would wait forever."""
    import numpy as np

    square = np.ones((512, 512), np.float32)
    np.matmul(square, square)
