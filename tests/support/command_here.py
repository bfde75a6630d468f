"""Run ``crossfade`` commands in this process, which spares a test the start of another."""

from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess

from crossfade.cli.main import main


def crossfade_here(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """Run a command and return its result. One that logs, such as ``agent``, would set how later ones do."""
    words, stdout, stderr = [str(argument) for argument in arguments], StringIO(), StringIO()
    with chdir(cwd or "."), redirect_stdout(stdout), redirect_stderr(stderr):
        code = main(words)
    return CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())


def rejected_here(expected: str, *arguments: object, cwd: Path | None = None) -> str:
    """Run a command that ends with one line about its input, in which ``expected`` is; return its message."""
    result = crossfade_here(*arguments, cwd=cwd)
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert expected in line
    return line.removeprefix("crossfade: error: ")
