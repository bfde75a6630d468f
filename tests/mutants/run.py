"""Break the code in known ways, and see that the tests which each break names notice it.

    make mutants                                   all of them
    make mutants ARGS='--only commit-order'        one
    .venv/bin/python tests/mutants/run.py --list

The breaks stand in the .toml files beside this one. Each has

    name      of its own
    file      from the root of the repository
    find      text that occurs exactly once in that file
    replace   what is put in its place
    tests     files or node ids of pytest, of which at least one must fail
    note      why it matters, if that is not plain

Nothing of the checkout is changed: each job works on a copy of what git sees of it, uncommitted content included, and
imports the packages of that copy. First all tests that are named run in an unchanged copy, where they must pass.

A break is noticed when pytest ends with exit code 1, or not within the timeout. It has survived when pytest ends with
0. It is broken, which says nothing about the tests, when its text does not fit, when what it makes is no Python, when
one of its tests fails without it too, or when pytest ends with any other exit code, as when a test cannot be imported.
Exit codes: 0 all were noticed; 1 some were not; 2 pytest cannot run the tests, or the arguments are wrong.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
PACKAGES = ("kvstore", "trainer", "deploy", "crossfade")
TOKEN_VARIABLE = "CROSSFADE_MUTANTS_RUN"
"""Whoever has it in the environment was started from here, and is ended from here if it is left over."""
BASELINE_SECONDS = 3600.0
ENDING_SECONDS = 10.0
"""How long pytest may take to end its fixtures after a timeout."""
_KEYS = {"name", "file", "find", "replace", "tests", "note"}
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_REASON = re.compile(r"^E +(\S.*)$", re.MULTILINE)
_LONGEST_REASON = 100


class UsageError(Exception):
    """What is wrong with the arguments or with the files of breaks."""


@dataclass(frozen=True)
class Mutant:
    """One break."""

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]

    @property
    def package(self) -> str:
        """The folder of its file."""
        return str(Path(self.file).parent)

    def applied_to(self, text: str) -> str:
        """``text`` of its file, broken.

        Raises:
            ValueError: it does not fit.
        """
        found = text.count(self.find)
        if found != 1:
            raise ValueError(f"its text to find occurs {found} times in {self.file}")
        broken = text.replace(self.find, self.replace)
        if broken == text:
            raise ValueError("it changes nothing")
        try:
            compile(broken, self.file, "exec")
        except SyntaxError as error:
            raise ValueError(f"what it makes is no Python: {error}") from error
        return broken


@dataclass(frozen=True)
class Result:
    """What came of one break: noticed, survived or broken; ``how`` in a few words."""

    mutant: Mutant
    verdict: str
    seconds: float
    how: str = ""


def load_mutants() -> list[Mutant]:
    """Read all files of breaks.

    Raises:
        UsageError: an entry lacks something, or a name stands twice.
    """
    mutants: list[Mutant] = []
    for path in sorted(HERE.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
            where = f"{path.name}: {entry.get('name', 'an entry without a name')}"
            if strange := set(entry) - _KEYS:
                raise UsageError(f"{where}: has {', '.join(sorted(strange))}, which nothing reads")
            if lacking := _KEYS - {"note"} - set(entry):
                raise UsageError(f"{where}: lacks {', '.join(sorted(lacking))}")
            if not entry["tests"]:
                raise UsageError(f"{where}: names no test")
            if any(entry["name"] == mutant.name for mutant in mutants):
                raise UsageError(f"{where}: the name stands twice")
            values = {key: entry[key] for key in ("name", "file", "find", "replace")}
            mutants.append(Mutant(**values, tests=tuple(entry["tests"])))
    return mutants


def misfits(mutants: Sequence[Mutant], root: Path) -> dict[str, str]:
    """Of breaks that cannot be applied below ``root``, by name, why."""
    reasons = {}
    for mutant in mutants:
        try:
            mutant.applied_to((root / mutant.file).read_text(encoding="utf-8"))
            gone = [test for test in mutant.tests if not (root / test.partition("::")[0]).exists()]
            if gone:
                raise ValueError(f"there is no {gone[0]}")
        except (OSError, ValueError) as error:
            reasons[mutant.name] = str(error)
    return reasons


@dataclass
class Runner:
    """Runs pytest in copies of the checkout. ``close`` ends whatever still runs."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False

    def copy_checkout(self, name: str) -> Path:
        """A new copy of what git sees of the checkout."""
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
            if source.is_symlink() or source.is_file():  # a deleted file is still listed
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        # Tests may want a tool of the environment by its place in the checkout.
        (copy / ".venv").symlink_to(ROOT / ".venv")
        return copy

    def copy_of(self, copy: Path, name: str) -> Path:
        """Another one like ``copy``, with the kernels that numba has compiled there meanwhile."""
        other = self.folder / name
        shutil.copytree(copy, other, symlinks=True)
        return other

    def check_imports(self, copy: Path) -> None:
        """See that Python imports the packages of ``copy``, also where a test or a role starts it from elsewhere.

        Raises:
            UsageError: it imports others.
        """
        code = f"import {', '.join(PACKAGES)}; print(*[module.__file__ for module in ({', '.join(PACKAGES)})])"
        for options in ([], ["-P"]):
            said = subprocess.run(
                [PYTHON, *options, "-c", code],
                cwd=self.folder,
                env=self._environment(copy),
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()
            strange = [path for path in said if not Path(path).is_relative_to(copy)]
            if strange:
                raise UsageError(f"python {' '.join(options)}: imports {strange[0]}, which is not in the copy {copy}")

    def pytest(self, copy: Path, arguments: Sequence[str], timeout: float) -> tuple[int | None, str]:
        """Run pytest in ``copy``: its exit code, None if it did not end in time, and what it printed."""
        mark = secrets.token_hex(8)
        temporary = ["--basetemp", str(copy.with_name(f"{copy.name}-tmp"))]  # goes with the rest
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
        """End what runs, and start nothing any more."""
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
        # Numba keeps what it has compiled beside the sources, in the copy.
        return inherited | {"PYTHONPATH": str(copy), TOKEN_VARIABLE: self.token}


def _end_group(process: subprocess.Popen[str]) -> None:
    """End pytest, which may first end what its fixtures have started, and what is left of its process group."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_SECONDS)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_marked(variable: str, value: str) -> None:
    """Kill processes in sessions of their own that somebody left behind: those with ``variable`` in the environment."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                process.kill()


@contextmanager
def broken(copy: Path, mutant: Mutant, number: int) -> Iterator[None]:
    """Break ``copy`` while the context lasts.

    Python and numba take a compiled file for current by the time and size of its source: the broken file gets a time
    that no other has, and numba's compiled kernels of the file are put aside and come back.
    """
    path = copy / mutant.file
    found = path.stat()
    text = path.read_text(encoding="utf-8")
    aside = copy.parent / f"{copy.name}-kernels"
    kernels = [kept for ending in ("nbi", "nbc") for kept in path.parent.glob(f"__pycache__/{path.stem}.*.{ending}")]
    aside.mkdir()
    for kept in kernels:
        kept.rename(aside / kept.name)
    try:
        path.write_text(mutant.applied_to(text), encoding="utf-8")
        changed = found.st_mtime_ns + (1 + number) * 10**9
        os.utime(path, ns=(changed, changed))
        yield
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        for ending in ("nbi", "nbc"):
            for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.{ending}"):
                compiled.unlink()
        for kept in aside.iterdir():
            kept.rename(path.parent / "__pycache__" / kept.name)
        aside.rmdir()


def judge(runner: Runner, copy: Path, mutant: Mutant, number: int, timeout: float) -> Result:
    """See whether its tests notice ``mutant``."""
    begin = time.monotonic()
    with broken(copy, mutant, number):
        code, said = runner.pytest(copy, ["-x", *mutant.tests], timeout)
    seconds = time.monotonic() - begin
    if code is None:
        return Result(mutant, "noticed", seconds, f"by the timeout of {timeout:g} s")
    if code == 1:
        failed, reason = _FAILED.search(said), _REASON.search(said)
        why = f": {reason[1][:_LONGEST_REASON]}" if reason else ""
        return Result(mutant, "noticed", seconds, f"by {failed[1]}{why}" if failed else "")
    if code == 0:
        return Result(mutant, "survived", seconds, f"pytest {' '.join(mutant.tests)}")
    return Result(mutant, "broken", seconds, f"pytest ended with exit code {code}:\n{_tail(said)}")


def _tail(said: str, lines: int = 30) -> str:
    return "\n".join(f"    {line}" for line in said.splitlines()[-lines:])


def failing_unbroken(runner: Runner, copy: Path, mutants: Sequence[Mutant], jobs: int) -> dict[str, str]:
    """Of breaks of which a test does not pass without any break either, by name, which one.

    Tests run in ``jobs`` processes. Those that fail run once more alone: on a busy machine a test may come too late.

    Raises:
        UsageError: pytest cannot run them.
    """
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    whole = {test for test in tests if "::" not in test}
    tests = [test for test in tests if test in whole or test.partition("::")[0] not in whole]
    print(f"{len(tests)} files and tests must pass without any break ...", flush=True)
    begin = time.monotonic()
    processes = ["-n", str(jobs), "--dist", "loadfile", "--no-loadscope-reorder"] if jobs > 1 else []
    said = _run_unbroken(runner, copy, [*processes, *tests])
    failed = sorted({test for test in tests for found in _FAILED.findall(said) if _is_of(found, test)})
    if failed:
        print(f"{said.splitlines()[-1]}; once more, alone: {' '.join(failed)}", flush=True)
        said = _run_unbroken(runner, copy, failed)
        failed = [test for test in failed for found in _FAILED.findall(said) if _is_of(found, test)]
        print(_tail(said) if failed else "", end="\n" if failed else "", flush=True)
    print(f"{len(tests) - len(set(failed))} do ({time.monotonic() - begin:.0f} s)", flush=True)
    return {
        mutant.name: f"{test} fails without any break"
        for mutant in mutants
        for test in failed
        if test in mutant.tests or test.partition("::")[0] in mutant.tests
    }


def _run_unbroken(runner: Runner, copy: Path, arguments: Sequence[str]) -> str:
    code, said = runner.pytest(copy, arguments, BASELINE_SECONDS)
    if code not in {0, 1}:
        how = "took too long" if code is None else f"ended with exit code {code}"
        raise UsageError(f"pytest {how} without any break:\n{_tail(said)}")
    if code == 1 and not _FAILED.search(said):
        raise UsageError(f"pytest does not say what failed without any break:\n{_tail(said)}")
    return said


def _is_of(found: str, test: str) -> bool:
    """Whether the node id ``found`` is that of ``test``, or of one of its cases or functions."""
    return found == test or found.startswith((f"{test}[", f"{test}::"))


def run_all(
    runner: Runner, mutants: Sequence[Mutant], jobs: int, timeout: float, *, skip_baseline: bool
) -> list[Result]:
    """Judge all ``mutants``, several at a time; each is told as it ends."""
    copy = runner.copy_checkout("job-0")
    runner.check_imports(copy)
    reasons = misfits(mutants, copy)
    fit = [mutant for mutant in mutants if mutant.name not in reasons]
    if fit and not skip_baseline:
        reasons |= failing_unbroken(runner, copy, fit, jobs)
        fit = [mutant for mutant in fit if mutant.name not in reasons]
    results = [Result(mutant, "broken", 0.0, reasons[mutant.name]) for mutant in mutants if mutant.name in reasons]
    for result in results:
        _tell(result)
    copies = [copy, *(runner.copy_of(copy, f"job-{number}") for number in range(1, min(jobs, len(fit))))]
    waiting: queue.SimpleQueue[tuple[int, Mutant]] = queue.SimpleQueue()
    for numbered in enumerate(fit):
        waiting.put(numbered)
    errors: list[BaseException] = []

    def work(at: Path) -> None:
        try:
            while not runner.closed:
                number, mutant = waiting.get_nowait()
                result = judge(runner, at, mutant, number, timeout)
                if not runner.closed:
                    results.append(result)
                    _tell(result)
        except queue.Empty:
            pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(at,)) for at in copies]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        runner.close()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return results


def _tell(result: Result) -> None:
    print(f"{result.verdict:<8} {result.seconds:6.1f} s  {result.mutant.name}  {result.how}".rstrip(), flush=True)


def summary(results: Sequence[Result], seconds: float) -> list[str]:
    """The closing table, and the names of those that were not noticed."""
    packages = sorted({result.mutant.package for result in results})
    width = max(map(len, [*packages, "all"]))
    lines = [""]
    for package in [*packages, "all"]:
        of = [result for result in results if package in {result.mutant.package, "all"}]
        noticed = sum(result.verdict == "noticed" for result in of)
        lines.append(f"{package:<{width}}  {noticed:3d} of {len(of):3d} noticed")
    for verdict in ("survived", "broken"):
        names = sorted(result.mutant.name for result in results if result.verdict == verdict)
        if names:
            lines.append(f"{verdict}: {', '.join(names)}")
    noticed = sum(result.verdict == "noticed" for result in results)
    lines.append(f"score: {100 * noticed / len(results):.1f} % in {seconds:.0f} s")
    return lines


def _positive(kind: type) -> object:
    def parse(text: str) -> object:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError("expected more than 0")
        return value

    return parse


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="tests/mutants/run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="judge these breaks alone")
    parser.add_argument("--list", action="store_true", help="print the names, files and tests of the breaks, and end")
    parser.add_argument("--check", action="store_true", help="see whether each break still fits its file, and end")
    parser.add_argument(
        "--jobs", type=_positive(int), default=2, metavar="N", help="judge so many at a time (default: 2)"
    )
    parser.add_argument(
        "--timeout",
        type=_positive(float),
        default=300.0,
        metavar="SECONDS",
        help="what takes longer counts as noticed (default: 300 for each break)",
    )
    parser.add_argument(
        "--skip-baseline",
        action="store_true",
        help="take it that the tests pass without any break",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the breaks; returns the exit code."""
    parsed = parse(arguments)
    begin = time.monotonic()
    try:
        mutants = load_mutants()
        if parsed.only:
            if unknown := set(parsed.only) - {mutant.name for mutant in mutants}:
                raise UsageError(f"--only {' '.join(sorted(unknown))}: no such break; --list has the names")
            mutants = [mutant for mutant in mutants if mutant.name in parsed.only]
        if parsed.list:
            for mutant in mutants:
                print(f"{mutant.name}  {mutant.file}  {' '.join(mutant.tests)}")
            return 0
        if parsed.check:
            reasons = misfits(mutants, ROOT)
            for name, reason in reasons.items():
                print(f"broken   {name}  {reason}")
            print(f"{len(mutants) - len(reasons)} of {len(mutants)} fit")
            return int(bool(reasons))
        with tempfile.TemporaryDirectory(prefix="crossfade-mutants-") as folder:
            runner = Runner(Path(folder).resolve())
            try:
                results = run_all(runner, mutants, parsed.jobs, parsed.timeout, skip_baseline=parsed.skip_baseline)
            finally:
                runner.close()
    except UsageError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mutants: stopped", file=sys.stderr)
        return 130
    print(*summary(results, time.monotonic() - begin), sep="\n")
    return int(any(result.verdict != "noticed" for result in results))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
