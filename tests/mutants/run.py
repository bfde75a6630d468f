"""Mutation testing: apply deliberate changes to the code, and check that the tests named for each change fail.

    make mutants                                   judge all mutants
    make mutants ARGS='--only commit-order'        judge one
    .venv/bin/python tests/mutants/run.py --list

The .toml files in this folder define the mutants. Each has

    name      a unique name
    file      a path from the root of the repository
    find      text that occurs exactly once in the file
    replace   the text that replaces it
    tests     files or node IDs of pytest, of which at least one must fail
    note      why the change matters, where that is not obvious

The checkout stays unchanged: each job works on a copy of it, uncommitted content included, and imports the packages of
that copy. First, all named tests run in an unchanged copy, where they must pass.

A mutant is noticed (killed) when pytest exits with 1 or exceeds the timeout. It survives when pytest exits with 0. It
is broken, which is no verdict on the tests, when it does not apply, when one of its tests fails on unchanged code, or
when pytest exits with any other code, for example because a test cannot be imported. Exit codes: 0 all mutants were
noticed; 1 some were not; 2 pytest cannot run the tests, or the arguments are invalid.
"""

from __future__ import annotations

import argparse
import queue
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mutants import Mutant, Result, UsageError, load_mutants, misfits
from sandbox import ROOT, Runner, applied

BASELINE_SECONDS = 3600.0
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_REASON = re.compile(r"^E +(\S.*)$", re.MULTILINE)
_MAX_REASON_LENGTH = 100


def judge(runner: Runner, copy: Path, mutant: Mutant, number: int, timeout: float) -> Result:
    """Run the tests of ``mutant`` against it."""
    begin = time.monotonic()
    with applied(copy, mutant, number):
        code, output = runner.pytest(copy, ["-x", *mutant.tests], timeout)
    seconds = time.monotonic() - begin
    if code is None:
        return Result(mutant, "noticed", seconds, f"by the timeout of {timeout:g} s")
    if code == 1:
        failed, reason = _FAILED.search(output), _REASON.search(output)
        why = f": {reason[1][:_MAX_REASON_LENGTH]}" if reason else ""
        return Result(mutant, "noticed", seconds, f"by {failed[1]}{why}" if failed else "")
    if code == 0:
        return Result(mutant, "survived", seconds, f"pytest {' '.join(mutant.tests)}")
    return Result(mutant, "broken", seconds, f"pytest ended with exit code {code}:\n{_tail(output)}")


def _tail(output: str, lines: int = 30) -> str:
    return "\n".join(f"    {line}" for line in output.splitlines()[-lines:])


def failing_baseline(runner: Runner, copy: Path, mutants: Sequence[Mutant], jobs: int) -> dict[str, str]:
    """Run all tests in an unchanged copy; return which fail, by the mutants that name them.

    Tests run in ``jobs`` processes. Those that fail run again alone, since a busy machine can exceed time limits.

    Raises:
        UsageError: pytest cannot run them.
    """
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    files = {test for test in tests if "::" not in test}
    tests = [test for test in tests if test in files or test.partition("::")[0] not in files]
    print(f"{len(tests)} files and tests must pass on unchanged code ...", flush=True)
    begin = time.monotonic()
    processes = ["-n", str(jobs), "--dist", "loadfile", "--no-loadscope-reorder"] if jobs > 1 else []
    output = _run_baseline(runner, copy, [*processes, *tests])
    failed = sorted({test for test in tests for found in _FAILED.findall(output) if _is_of(found, test)})
    if failed:
        print(f"{output.splitlines()[-1]}; again, alone: {' '.join(failed)}", flush=True)
        output = _run_baseline(runner, copy, failed)
        failed = [test for test in failed for found in _FAILED.findall(output) if _is_of(found, test)]
        print(_tail(output) if failed else "", end="\n" if failed else "", flush=True)
    print(f"{len(tests) - len(set(failed))} pass ({time.monotonic() - begin:.0f} s)", flush=True)
    return {
        mutant.name: f"{test} fails on unchanged code"
        for mutant in mutants
        for test in failed
        if test in mutant.tests or test.partition("::")[0] in mutant.tests
    }


def _run_baseline(runner: Runner, copy: Path, arguments: Sequence[str]) -> str:
    code, output = runner.pytest(copy, arguments, BASELINE_SECONDS)
    if code not in {0, 1}:
        how = "took too long" if code is None else f"ended with exit code {code}"
        raise UsageError(f"pytest {how} on unchanged code:\n{_tail(output)}")
    if code == 1 and not _FAILED.search(output):
        raise UsageError(f"pytest names no failed test on unchanged code:\n{_tail(output)}")
    return output


def _is_of(found: str, test: str) -> bool:
    """Return whether the node ID ``found`` is ``test`` or one of its cases or functions."""
    return found == test or found.startswith((f"{test}[", f"{test}::"))


def run_all(
    runner: Runner, mutants: Sequence[Mutant], jobs: int, timeout: float, *, skip_baseline: bool
) -> list[Result]:
    """Judge all ``mutants``, ``jobs`` at a time, and print each verdict as it comes."""
    copy = runner.copy_checkout("job-0")
    runner.check_imports(copy)
    reasons = misfits(mutants, copy)
    fit = [mutant for mutant in mutants if mutant.name not in reasons]
    if fit and not skip_baseline:
        reasons |= failing_baseline(runner, copy, fit, jobs)
        fit = [mutant for mutant in fit if mutant.name not in reasons]
    results = [Result(mutant, "broken", 0.0, reasons[mutant.name]) for mutant in mutants if mutant.name in reasons]
    for result in results:
        _print_result(result)
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
                    _print_result(result)
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


def _print_result(result: Result) -> None:
    print(f"{result.verdict:<8} {result.seconds:6.1f} s  {result.mutant.name}  {result.how}".rstrip(), flush=True)


def summary(results: Sequence[Result], seconds: float) -> list[str]:
    """Return the lines of the closing table, and the names of mutants that were not noticed."""
    packages = sorted({result.mutant.package for result in results})
    width = max(map(len, [*packages, "all"]))
    lines = [""]
    for package in [*packages, "all"]:
        selected = [result for result in results if package in {result.mutant.package, "all"}]
        noticed = sum(result.verdict == "noticed" for result in selected)
        lines.append(f"{package:<{width}}  {noticed:3d} of {len(selected):3d} noticed")
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
    parser.add_argument("--only", nargs="+", metavar="NAME", help="judge only these mutants")
    parser.add_argument("--list", action="store_true", help="print name, file, and tests of each mutant, and exit")
    parser.add_argument("--check", action="store_true", help="check that each mutant applies to its file, and exit")
    parser.add_argument(
        "--jobs", type=_positive(int), default=2, metavar="N", help="judge N mutants at a time (default: 2)"
    )
    parser.add_argument(
        "--timeout",
        type=_positive(float),
        default=300.0,
        metavar="SECONDS",
        help="count a mutant whose tests take longer as noticed (default: 300)",
    )
    parser.add_argument(
        "--skip-baseline",
        action="store_true",
        help="skip the run of the tests on unchanged code",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the mutants; return the exit code."""
    parsed = parse(arguments)
    begin = time.monotonic()
    try:
        mutants = load_mutants()
        if parsed.only:
            if unknown := set(parsed.only) - {mutant.name for mutant in mutants}:
                raise UsageError(f"--only {' '.join(sorted(unknown))}: no such mutant; --list prints the names")
            mutants = [mutant for mutant in mutants if mutant.name in parsed.only]
        if parsed.list:
            for mutant in mutants:
                print(f"{mutant.name}  {mutant.file}  {' '.join(mutant.tests)}")
            return 0
        if parsed.check:
            reasons = misfits(mutants, ROOT)
            for name, reason in reasons.items():
                print(f"broken   {name}  {reason}")
            print(f"{len(mutants) - len(reasons)} of {len(mutants)} apply")
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
