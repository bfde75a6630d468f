"""Check a host: its packages, GPUs, and limits; what training needs of it, whatever the job."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from crossfade.base.errors import CrossfadeError, as_typed
from crossfade.base.formatting import size
from crossfade.base.machine import limit_bytes
from crossfade.base.packages import pandas_conflict
from crossfade.deploy.doctor.findings import Finding, State
from crossfade.kvstore.mxnet.ports import SOCKET_FOLDER
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.engines.cuda_driver import find_gpus
from crossfade.trainer.model.engines.engine import choose_engine, drivers

_SAFE_PATH = "-P"
"""Python's option to import nothing from the current folder, as roles are started."""
_IMPORT_MXNET = """\
import sys
from crossfade.base.errors import CrossfadeError
from crossfade.kvstore.mxnet.imports import import_mxnet
try:
    print(import_mxnet().__version__)
except CrossfadeError as error:
    sys.exit(str(error))
"""
_FIND_CACHE = """\
from crossfade.kvstore.philox import philox
from crossfade.kvstore.portable_kernels import KernelCache
print(KernelCache(philox.py_func).cache_path)
"""
_SYSTEM_LIBRARIES = {"libgomp.so.1": "libgomp1", "libquadmath.so.0": "libquadmath0"}
"""Libraries that MXNet loads and its wheel lacks, and the packages of Debian that have them."""
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_CONNECT_SECONDS = 5.0
_FILES, _FILES_PER_ROLE = 256, 4
"""Open files of a process, beyond those for each role. Of 9 roles each had 40 at most, of 5 each 28; requests to S3
and reading threads add some."""
_MIN_TEMP_BYTES, _LOW_TEMP_BYTES = 2**24, 2**30
"""Free bytes for temporary files below which nothing works, and below which preparing a large dataset may fail."""


def _run_python(code: str, seconds: float) -> tuple[int, str, str]:
    """Run ``code`` in a child process, as a library that cannot be loaded may abort it; return exit code and output.

    Raises:
        TimeoutExpired: it did not end within ``seconds``.
    """
    command = [sys.executable, _SAFE_PATH, "-c", code]
    result = subprocess.run(  # noqa: S603 - our own command
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
    )
    return result.returncode, result.stdout.strip(), (result.stderr.strip().splitlines() or [""])[-1]


def check_mxnet(*, needed: bool, seconds: float) -> Iterator[Finding]:
    """Check that MXNet can be imported, if it is installed or the job needs it."""
    if find_spec("mxnet") is None and not needed:
        yield Finding("mxnet", "ok", "is not installed: workers hold the tables, and there are no servers")
        return
    code, version, problem = _run_python(_IMPORT_MXNET, seconds)
    if code == 0:
        yield Finding("mxnet", "ok", f"{version} can be imported")
        return
    if code < 0:
        problem = f"importing it ended with signal {-code}; install the wheel for this processor again"
    missing = [package for library, package in _SYSTEM_LIBRARIES.items() if not _can_load(library)]
    fix = f"; apt-get install {' '.join(missing)}, or the packages of this system that have them" if missing else ""
    yield Finding("mxnet", "fix" if needed else "warning", f"{problem}{fix}")


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def check_kernel_cache(*, seconds: float) -> Iterator[Finding]:
    """Check that a folder for compiled kernels can be written: without one, nothing that has kernels is imported."""
    code, folder, problem = _run_python(_FIND_CACHE, seconds)
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if code and "no locator available" in problem:
        problem = "no folder for compiled kernels can be written; set NUMBA_CACHE_DIR to one that can"
    if code:
        yield Finding("kernels", "fix", problem)
    elif chosen and not Path(folder).resolve().is_relative_to(Path(chosen).resolve()):
        found = f"NUMBA_CACHE_DIR={chosen} cannot be written, so that compiled kernels are kept in {folder}"
        yield Finding("kernels", "warning", f"{found}; make it writable, or unset it")
    else:
        yield Finding("kernels", "ok", f"compiled ones are kept in {folder}")


def check_loopback() -> Iterator[Finding]:
    """Check that a connection within this host succeeds."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), _CONNECT_SECONDS),
        ):
            yield Finding("loopback", "ok", "127.0.0.1 accepts connections")
    except OSError as error:
        found = f"127.0.0.1 accepts no connections: {error.strerror or error}"
        yield Finding("loopback", "fix", f"{found}; ip link set lo up, or look for a firewall")


def check_huge_pages() -> Iterator[Finding]:
    """Check that large tables may get huge pages."""
    try:
        enabled = re.search(r"\[(\w+)\]", _HUGE_PAGES.read_text(encoding="ascii"))
    except OSError:
        yield Finding("huge pages", "ok", "this kernel has no setting for them")
        return
    if enabled is not None and enabled[1] == "never":
        fix = f"echo madvise > {_HUGE_PAGES}, as root"
        yield Finding("huge pages", "warning", f"are disabled, which slows down access to large tables; {fix}")
    else:
        yield Finding("huge pages", "ok", f"are enabled ({enabled[1] if enabled else 'unknown'})")


def check_memory_limit() -> Iterator[Finding]:
    """Name the limit of the control groups of this process, which ``crossfade plan`` counts, if there is one."""
    limit, total = limit_bytes(), int(psutil.virtual_memory().total)
    found = f"{size(limit)}, of the {size(total)}" if limit < total else f"none below the {size(total)}"
    yield Finding("memory limit", "ok", f"{found} of this machine")


def check_open_files(roles: int) -> Iterator[Finding]:
    """Check that a process of a job of so many ``roles`` may open enough files."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES + _FILES_PER_ROLE * roles
    if limit != resource.RLIM_INFINITY and limit < needed:
        found = f"a process may open {limit:,}; expected {needed:,} or more"
        yield Finding("open files", "fix", f"{found}: ulimit -n {needed}, or LimitNOFILE of the service")
    else:
        count = "any number" if limit == resource.RLIM_INFINITY else f"{limit:,}"
        yield Finding("open files", "ok", f"a process may open {count}; expected {needed:,} or more")


def check_temporary_files() -> Iterator[Finding]:
    """Check that temporary files can be written, and sockets where ps-lite creates them."""
    chosen, folder = os.environ.get("TMPDIR"), tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if chosen and Path(chosen).absolute() != Path(folder).absolute():
        fix = "make it writable, or unset it"
        yield Finding("temporary", "warning", f"TMPDIR={chosen} cannot be written, so that {folder} is used; {fix}")
    elif free < _LOW_TEMP_BYTES:
        fix = "make room, or set TMPDIR to a folder on a larger disk"
        state: State = "fix" if free < _MIN_TEMP_BYTES else "warning"
        yield Finding("temporary", state, f"{folder}: {size(free)} are free; {fix}")
    else:
        yield Finding("temporary", "ok", f"{folder}: {size(free)} are free")
    if not os.access(SOCKET_FOLDER, os.W_OK | os.X_OK):
        found = f"{SOCKET_FOLDER}: cannot be written, where the roles of a job on one host create their sockets"
        yield Finding("temporary", "fix", f"{found}; make it writable")


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
        yield Finding("gpu", "ok", f"the job would compute on {', '.join(choice.devices)} with engine {choice.engine}")


_NAME = "crossfade"


def check_versions() -> Iterator[Finding]:
    """Compare the versions; packages of an extra count if all of them are installed."""
    if conflict := pandas_conflict():
        yield Finding("pandas", "warning", conflict)
    try:
        installed = metadata.distribution(_NAME)
    except metadata.PackageNotFoundError:
        yield Finding("packages", "warning", f"not compared: {_NAME} is not installed; pip install it")
        return
    version, expected = platform.python_version(), installed.metadata["Requires-Python"]
    fits = SpecifierSet(expected or "").contains(version, prereleases=True)
    advice = "" if fits else f"; expected {expected}: install {_NAME} for such a Python"
    yield Finding("python", "ok" if fits else "fix", f"{version}, {_NAME} {installed.version}{advice}")
    requirements = [Requirement(text) for text in installed.requires or ()]
    yield _compare([each for each in requirements if each.name != _NAME], installed.metadata.get_all("Provides-Extra"))


def _compare(requirements: Sequence[Requirement], extras: Sequence[str] | None) -> Finding:
    """Compare the packages without an extra, and those of ``extras`` that are installed completely."""
    required = [each for each in requirements if _applies(each, "")]
    in_use = 0
    for extra in extras or ():
        added = [each for each in requirements if _applies(each, extra) and not _applies(each, "")]
        if added and all(_version(each) for each in added):
            required += added
            in_use += 1
    wrong = [each for each in required if not _fits(each)]
    if wrong:
        found = ", ".join(dict.fromkeys(f"{each.name} is {_version(each) or 'missing'}" for each in wrong))
        fix = " ".join(dict.fromkeys(f"'{each.name}{each.specifier}'" for each in wrong))
        return Finding("packages", "fix", f"{found}; pip install {fix}")
    names = {each.name for each in required}
    return Finding("packages", "ok", f"{len(names)}, those of {in_use} extras included, are of the required versions")


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _fits(requirement: Requirement) -> bool:
    version = _version(requirement)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _version(requirement: Requirement) -> str | None:
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None
