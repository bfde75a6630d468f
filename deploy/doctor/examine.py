"""Check that MXNet can be imported, that the GPU's driver works, and what the credentials may do on S3.

for finding in examine(DoctorOptions(job=Path("runs/plays"))):
    finding.check, finding.state, finding.message

Whether data, memory, disks, and ports suffice, ``crossfade train`` checks before it starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from crossfade.base.errors import CrossfadeError, InputError, as_typed
from crossfade.base.io.folder import Folder
from crossfade.base.io.s3 import ATTEMPTS_VARIABLE, TIMEOUT_VARIABLE
from crossfade.deploy.cluster.store_choice import choose_store
from crossfade.deploy.doctor.options import DoctorOptions
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.engines.cuda_driver import find_gpus
from crossfade.trainer.model.engines.engine import choose_engine, drivers

_IMPORT_MXNET = """\
import sys
from crossfade.base.errors import CrossfadeError
from crossfade.kvstore.mxnet.imports import import_mxnet
try:
    print(import_mxnet().__version__)
except CrossfadeError as error:
    sys.exit(str(error))
"""
_IMPORT_SECONDS = 60.0
"""Importing MXNet takes a second or two, and on a network disk sometimes longer."""
_LIMITS = {ATTEMPTS_VARIABLE: "2", TIMEOUT_VARIABLE: "5", "AWS_MAX_ATTEMPTS": "2"}
"""Attempts and seconds of a request, where the environment has none: a run may wait for minutes, a check not."""
_PROBE = b"probe"

State = Literal["ok", "warning", "fix"]


@dataclass(frozen=True)
class Finding:
    """The result of a check. What is to ``fix`` keeps training from working; ``message`` has how to fix it."""

    check: str
    state: State
    message: str


def examine(options: DoctorOptions) -> Iterator[Finding]:
    """Yield what checks of this host find and, if the options name a job, checks of the job's storage.

    Raises:
        InputError: the run or job does not exist, or is invalid.
    """
    job, run = options.load()
    notes: list[str] = []
    job = job and choose_store(job, notes.append)
    yield from (Finding("store", "warning", note) for note in notes)
    needs_mxnet = job is not None and (job.cluster.servers > 0 or job.train.engine == "mxnet")
    yield check_mxnet(needed=needs_mxnet)
    yield from check_gpus(job)
    if job is not None and run is not None:
        with _short_requests():
            yield from check_storage(job.data.path, run.checkpoints(job))


def check_mxnet(*, needed: bool) -> Finding:
    """Import MXNet in a child process, since a library that cannot be loaded may abort it."""
    if find_spec("mxnet") is None and not needed:
        return Finding("mxnet", "ok", "is not installed: workers hold the tables, and there are no servers")
    state: State = "fix" if needed else "warning"
    command = [sys.executable, "-P", "-c", _IMPORT_MXNET]  # -P: nothing from the current folder
    try:
        result = subprocess.run(  # noqa: S603 - our own command
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        advice = "look for a disk that does not answer"
        return Finding("mxnet", state, f"importing it did not end within {_IMPORT_SECONDS:g} s; {advice}")
    if result.returncode == 0:
        return Finding("mxnet", "ok", f"{result.stdout.strip()} can be imported")
    problem = (result.stderr.strip().splitlines() or [""])[-1]
    if result.returncode < 0:
        problem = f"importing it ended with signal {-result.returncode}; install the wheel for this processor again"
    return Finding("mxnet", state, problem)


def check_gpus(job: JobConfig | None) -> Iterator[Finding]:
    """Check the driver and each GPU; with ``job``, also what its first worker would compute on."""
    state = find_gpus()
    if state.problem:
        yield Finding("gpu", "warning", state.problem)
    elif not state.gpus:
        yield Finding("gpu", "ok", "none is found, so training computes on the CPU")
    for gpu in state.gpus:
        engines, reason = drivers(gpu)
        if engines:
            yield Finding("gpu", "ok", f"{gpu} can be used by engine {' and '.join(engines)}")
        else:
            yield Finding("gpu", "warning", f"{gpu} cannot be used: {reason}")
    if job is None:
        return
    try:
        choice = choose_engine(job.train)
    except CrossfadeError as error:
        yield Finding("gpu", "fix", error.worded(as_typed))
    else:
        yield Finding("gpu", "ok", f"the job would compute on {choice.device} with engine {choice.engine}")


@contextmanager
def _short_requests() -> Iterator[None]:
    """Have requests to S3 fail soon while the context lasts, unless the environment sets how long they are retried."""
    added = {name: value for name, value in _LIMITS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def check_storage(data: str, checkpoints: str) -> Iterator[Finding]:
    """Check that the dataset can be listed, and checkpoints listed, written, read, and deleted, as far as on S3."""
    for uri, is_written in ((data, False), (checkpoints, True)):
        if uri.startswith("s3://"):
            yield _try_folder(uri, is_written=is_written)


def _try_folder(uri: str, *, is_written: bool) -> Finding:
    """List the folder ``uri`` and, if training writes there, write, read, and delete a probe object."""
    folder, probe, action = Folder(uri), f".crossfade-doctor-{uuid.uuid4().hex}", "list"
    try:
        folder.names()
        if is_written:
            action = "write"
            folder.write(probe, _PROBE)
            action = "read"
            if folder.read(probe) != _PROBE:
                raise InputError("an object has other bytes than were written; look at what serves S3")
            action = "delete"
            folder.remove(probe)
    except (CrossfadeError, OSError) as error:
        reason = error.worded(as_typed) if isinstance(error, CrossfadeError) else str(error)
        where, _, rest = reason.partition(": ")
        reason = rest if where.startswith(uri) else reason
        left = f"; delete {uri}/{probe}" if action in ("read", "delete") else ""
        # Training works where it may not delete, but old checkpoints stay.
        return Finding("storage", "warning" if action == "delete" else "fix", f"{uri}: {action} fails: {reason}{left}")
    done = "list, write, read, and delete succeed" if is_written else "list succeeds"
    return Finding("storage", "ok", f"{uri}: {done}")
