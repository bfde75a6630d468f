"""Printed commands work as printed, in the shell that printed them."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from crossfade.base.command_line import command_line

SCRIPT = f"#!{sys.executable}\nimport sys\nfrom crossfade.cli.main import main\nsys.exit(main())\n"
"""What pip installs as ``crossfade``."""


def nexts(output: str) -> list[str]:
    """Return the commands that are printed as the next ones."""
    return [line.removeprefix("next: ") for line in output.splitlines() if line.startswith("next: ")]


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """Return a script as pip installs it, in a folder with a space."""
    script = tmp_path / "my bin" / "crossfade"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    script.chmod(0o755)
    return script


def typed(line: str, folder: Path) -> str:
    """Type ``line`` in a shell in ``folder``, and return what it prints."""
    return subprocess.run(
        ["sh", "-c", line], cwd=folder, capture_output=True, text=True, check=True, timeout=240
    ).stdout


@pytest.mark.slow
def test_commands_that_each_command_prints_as_next_run_as_printed(tmp_path: Path, another: Path) -> None:
    """Another crossfade than the one on PATH was called, by a relative path."""
    folder, own = tmp_path / "here", shlex.quote(str(another))
    folder.mkdir()
    made = "synthesize --queries 50 --items 40 --interactions 2000 --out"
    [train] = nexts(typed(f"'../my bin/crossfade' {made} \"my data's\"", folder))
    used = nexts(typed(f"{train} --set train.max_steps=2", folder))
    [again] = nexts(typed(f'{own} validate "my data\'s"', folder))
    [tuned] = nexts(typed(f"{own} tune my-data-s.yaml --trials 1 --out study --set train.max_steps=2", folder))
    assert [words[1] for words in map(shlex.split, used)] == ["similar", "recommend"]
    assert len({shlex.split(line)[0] for line in (tuned, *used)}) == 1
    for command in (*used, f"{again} --set train.max_steps=2", tuned):
        assert typed(command, folder)


@pytest.mark.parametrize("executable", [None, ""])
def test_process_that_does_not_know_its_python_names_it_by_path(
    monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "argv", ["notebook"])
    assert command_line("doctor") == "python -m crossfade doctor"
