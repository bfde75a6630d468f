"""Run ``crossfade`` commands in this process, which spares a test the start of another."""

from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from crossfade.main import main


def run_quietly(*words: object, cwd: Path | None = None) -> None:
    """Run a command that must succeed; show its output only if it fails."""
    output = StringIO()
    with chdir(cwd or "."), redirect_stdout(output), redirect_stderr(output):
        code = main([str(word) for word in words])
    assert not code, f"exit code {code}\n{output.getvalue()}"
