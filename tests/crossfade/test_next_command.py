"""Printed commands work as printed, in the shell that printed them."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from crossfade.next_command import command_line, train_command
from crossfade.trainer.config.loading import load_job

JOB = "name: {name}\ndata: {{path: {path}, query: customer, item: {item}}}\n"
SCRIPT = f"#!{sys.executable}\nimport sys\nfrom crossfade.cli.main import main\nsys.exit(main())\n"
"""What pip installs as ``crossfade``."""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the working directory; return its folder ``jobs``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    return tmp_path / "jobs"


def test_job_of_the_dataset_is_used(jobs: Path) -> None:
    (jobs / "plays.yaml").write_text(JOB.format(name="best", path="data/plays", item="track"))
    (jobs / "lastfm.yaml").write_text(JOB.format(name="lastfm", path="data/lastfm", item="artist"))
    assert train_command("data/plays", "customer", "track") == "crossfade train jobs/plays.yaml"
    assert train_command("data/plays/", "customer", "track") == "crossfade train jobs/plays.yaml"
    moved = "crossfade train jobs/plays.yaml --set data.path=other/plays --set data.item=song"
    assert train_command("other/plays", "customer", "song") == moved


def test_written_job_has_a_name_that_yaml_and_folders_take(jobs: Path) -> None:
    (jobs / "lastfm.yaml").write_text(JOB.format(name="lastfm", path="data/lastfm", item="artist"))
    # YAML would read two of these as a boolean and a number.
    for data, name in (("s3://music/2024 plays", "run-2024-plays"), ("on", "on"), ("12", "run-12")):
        assert Path(f"{name}.yaml") == typed_job(train_command(data, "customer", "artist"), name, data)


def typed_job(command: str, name: str, data: str) -> Path:
    """Run what ``command`` does before it trains; check the job that it writes, and return its path."""
    first, _, train = command.partition(" && ")
    subprocess.run(["sh", "-c", first], check=True)
    path = Path(train.split()[-1])
    job = load_job(path)
    assert (job.name, job.data.path) == (name, data)
    return path


def test_without_a_job_file_one_is_written_that_does_not_replace_another(jobs: Path) -> None:
    (jobs / "plays.yaml").write_text("not a job")
    command = "echo '{name: plays, data: {path: data/plays}}' > {file} && crossfade train {file}"
    assert train_command("data/plays", "customer", "track") == command.replace("{file}", "plays.yaml")
    Path("plays.yaml").write_text("something else")
    assert train_command("data/plays", "customer", "track") == command.replace("{file}", "plays-2.yaml")


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
    raw = "synthesize --raw-events --queries 50 --items 40 --interactions 2000 --out"
    [prepare] = nexts(typed(f"'../my bin/crossfade' {raw} \"my data's\"", folder))
    [train] = nexts(typed(prepare, folder))
    used = nexts(typed(f"{train} --set train.max_steps=2", folder))
    [again] = nexts(typed(f'{own} validate "my data\'s-prepared"', folder))
    [tuned] = nexts(typed(f"{own} tune my-data-s-prepared.yaml --trials 1 --out study --set train.max_steps=2", folder))
    assert [words[1] for words in map(shlex.split, used)] == ["similar", "recommend"]
    assert len({shlex.split(line)[0] for line in (prepare, tuned, *used)}) == 1
    for command in (*used, f"{again} --set train.max_steps=2", tuned):
        assert typed(command, folder)


@pytest.mark.slow
@pytest.mark.parametrize("called", ["PATH", "python -m"])
def test_printed_command_begins_as_the_one_that_was_typed(tmp_path: Path, another: Path, called: str) -> None:
    begin = "crossfade" if called == "PATH" else f"{sys.executable} -m crossfade"
    synthesize = "synthesize --queries 50 --items 40 --interactions 2000 --out data"
    [train] = nexts(typed(f"PATH='{another.parent}':$PATH; {begin} {synthesize}", tmp_path))
    assert f" && {begin} train " in train


@pytest.mark.parametrize("executable", [None, ""])
def test_process_that_does_not_know_its_python_names_it_by_path(
    monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "argv", ["notebook"])
    assert command_line("doctor") == "python -m crossfade doctor"
