"""Copies of the checkout in which mutants are applied and pytest runs."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from mutants import HERE, Mutant, UsageError

ROOT = HERE.parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
PACKAGES = ("kvstore", "trainer", "deploy", "crossfade")
TOKEN_VARIABLE = "CROSSFADE_MUTANTS_RUN"
"""Marks the environment of all processes started from here, so that leftovers can be ended."""
ENDING_SECONDS = 10.0
"""How long pytest may take to clean up after a timeout."""


@dataclass
class Runner:
    """Runs pytest in copies of the checkout; ``close`` ends all that still runs."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False

    def copy_checkout(self, name: str) -> Path:
        """Copy the files that git tracks or does not ignore, with uncommitted content, to a new folder."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        copy = self.folder / name
        for path in filter(None, listed.split("\0")):
            source, target = ROOT / path, copy / path
            if source.is_symlink() or source.is_file():  # git lists deleted files, too
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        # Some tests call tools of the environment by their path in the checkout.
        (copy / ".venv").symlink_to(ROOT / ".venv")
        return copy

    def copy_of(self, copy: Path, name: str) -> Path:
        """Copy ``copy``."""
        other = self.folder / name
        shutil.copytree(copy, other, symlinks=True)
        return other

    def check_imports(self, copy: Path) -> None:
        """Check that Python imports the packages of ``copy``, whatever folder it is started in.

        Raises:
            UsageError: it imports others.
        """
        code = f"import {', '.join(PACKAGES)}; print(*[module.__file__ for module in ({', '.join(PACKAGES)})])"
        for options in ([], ["-P"]):
            output = subprocess.run(
                [PYTHON, *options, "-c", code],
                cwd=self.folder,
                env=self._environment(copy),
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()
            foreign = [path for path in output if not Path(path).is_relative_to(copy)]
            if foreign:
                raise UsageError(f"python {' '.join(options)}: imports {foreign[0]}, which is not in the copy {copy}")

    def pytest(self, copy: Path, arguments: Sequence[str], timeout: float) -> tuple[int | None, str]:
        """Run pytest in ``copy``; return its exit code, None after the timeout, and its output."""
        mark = secrets.token_hex(8)
        temporary = ["--basetemp", str(copy.with_name(f"{copy.name}-tmp"))]  # deleted with the copies
        command = [str(PYTHON), "-u", "-m", "pytest", "-q", "-p", "no:cacheprovider", *temporary, *arguments]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace", dir=self.folder) as output:
            with self._lock:
                if self.closed:
                    return None, ""
                process = subprocess.Popen(
                    command,
                    cwd=copy,
                    env=self._environment(copy) | {"CROSSFADE_MUTANT": mark},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    text=True,
                )
                self._running.add(process)
            code: int | None = None
            try:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout)
            finally:
                _end_group(process)
                _end_marked("CROSSFADE_MUTANT", mark)
                with self._lock:
                    self._running.discard(process)
            output.seek(0)
            return code, output.read()

    def close(self) -> None:
        """End all runs, and start no more."""
        with self._lock:
            self.closed = True
            running = list(self._running)
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        _end_marked(TOKEN_VARIABLE, self.token)

    def _environment(self, copy: Path) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "NUMBA_CACHE"))
        }
        # Kernels of mutants would push those of the checkout out of the user's folder.
        own = {"PYTHONPATH": str(copy), "NUMBA_CACHE_DIR": str(self.folder / "kernels")}
        return inherited | own | {TOKEN_VARIABLE: self.token}


def _end_group(process: subprocess.Popen[str]) -> None:
    """Interrupt pytest, so that its fixtures clean up, then kill the rest of its process group."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_SECONDS)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_marked(variable: str, value: str) -> None:
    """Kill leftovers in sessions of their own: processes whose environment has ``variable`` set to ``value``."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                process.kill()


@contextmanager
def applied(copy: Path, mutant: Mutant, number: int) -> Iterator[None]:
    """Apply ``mutant`` to ``copy`` inside the block.

    Python compares the time and size of a source with those recorded in the compiled file, so the changed file gets a
    distinct modification time.
    """
    path = copy / mutant.file
    original = path.stat()
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutant.applied_to(text), encoding="utf-8")
        changed = original.st_mtime_ns + (1 + number) * 10**9
        os.utime(path, ns=(changed, changed))
        yield
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(original.st_atime_ns, original.st_mtime_ns))
