"""Printed commands work as printed, in the shell that printed them."""

import subprocess
import sys
from pathlib import Path

import pytest

from crossfade.next_command import train_command

JOB = "name: {name}\ndata: {{path: {path}, query: customer, item: {item}}}\n"
SCRIPT = f"#!{sys.executable}\nimport sys\nfrom crossfade.main import main\nsys.exit(main())\n"
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


def test_template_gets_a_run_name_of_its_own(jobs: Path) -> None:
    (jobs / "lastfm.yaml").write_text(JOB.format(name="lastfm", path="data/lastfm", item="artist"))
    template = "crossfade train jobs/lastfm.yaml --set"
    assert train_command("data/plays", "customer", "artist") == f"{template} name=plays --set data.path=data/plays"
    assert train_command("s3://music/2024 plays", "user", "track") == (
        f"{template} name=run-2024-plays --set 'data.path=s3://music/2024 plays' --set data.query=user "
        "--set data.item=track"
    )
    # YAML would read these as a boolean and a number.
    assert (
        train_command("on", "customer", "artist")
        == f"""{template} 'name='"'"'on'"'"'' --set 'data.path='"'"'on'"'"''"""
    )
    assert train_command("12", "customer", "artist") == f"""{template} name=run-12 --set 'data.path='"'"'12'"'"''"""


def test_without_a_job_file_one_is_written_that_does_not_replace_another(jobs: Path) -> None:
    (jobs / "plays.yaml").write_text("not a job")
    command = "echo '{name: plays, data: {path: data/plays}}' > {file} && crossfade train {file}"
    assert train_command("data/plays", "customer", "track") == command.replace("{file}", "plays.yaml")
    Path("plays.yaml").write_text("something else")
    assert train_command("data/plays", "customer", "track") == command.replace("{file}", "plays-2.yaml")


def next_of(output: str) -> str:
    [line] = [line for line in output.splitlines() if line.startswith("next: ")]
    return line.removeprefix("next: ")


@pytest.mark.slow
@pytest.mark.parametrize("called", ["./my bin/crossfade", "PATH", "python -m"])
def test_printed_command_runs_in_the_shell_that_printed_it(tmp_path: Path, called: str) -> None:
    script = tmp_path / "my bin" / "crossfade"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    script.chmod(0o755)
    words = {"./my bin/crossfade": "'./my bin/crossfade'", "PATH": "crossfade"}
    begin = words.get(called, f"'{sys.executable}' -m crossfade")
    environment = f"PATH='{script.parent}':$PATH; " if called == "PATH" else ""

    def typed(line: str) -> str:
        return subprocess.run(
            ["sh", "-c", f"{environment}{line}"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    following = next_of(typed(f'{begin} synthesize --queries 50 --items 40 --interactions 2000 --out "my data\'s"'))
    expected = {"./my bin/crossfade": "'./my bin/crossfade' train ", "PATH": "crossfade train "}
    assert expected.get(called, f"{sys.executable} -m crossfade train ") in following
    if called == "./my bin/crossfade":
        assert "embeddings and report: runs/my-data-s" in typed(f"{following} --set train.max_steps=2")
