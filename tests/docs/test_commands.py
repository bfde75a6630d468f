"""Commands in the documentation and job files in ``jobs/``: options, configuration keys, and make targets exist."""

import contextlib
import io
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_here import crossfade_here
from running_command import succeeded

from crossfade.base.errors import InputError
from crossfade.cli.main import make_parser
from crossfade.trainer.config.loading import load_job

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
_CODE_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"(?:\$ |timeout .* )?(?:\.venv/bin/)?crossfade ")


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each line of a page's code blocks that calls ``crossfade``."""
    for language, block in _CODE_BLOCK.findall(text):
        if language not in ("", "sh", "bash"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            call = _CALL.match(line)
            if call:
                lexer = shlex.shlex(line[call.end() :], posix=True, punctuation_chars=";|&")
                lexer.whitespace_split, lexer.commenters = True, "#"
                yield list(takewhile(lambda word: not re.match(r"[;|&]|\d?>", word), lexer))


def first_error(arguments: list[str]) -> str | None:
    """Return why the command line would reject ``arguments``; None if it accepts them."""
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(io.StringIO()):
            parsed = make_parser(arguments[:1]).parse_args(arguments)
        overrides = getattr(parsed, "set", None) or getattr(parsed, "overrides", None)
        if overrides:
            load_job(ROOT / "jobs" / "lastfm.yaml", list(overrides))
    except SystemExit as exit_:
        return messages.getvalue() if exit_.code else None
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_commands_are_accepted(page: Path) -> None:
    errors = {" ".join(arguments): first_error(arguments) for arguments in commands(page.read_text(encoding="utf-8"))}
    assert {command: error for command, error in errors.items() if error} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z][a-z-]*)", page.read_text(encoding="utf-8")))
    assert named - targets == set()


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_job_files_are_valid(job: Path) -> None:
    assert load_job(job, []).name == job.stem


# ---- README.md

NOT_RUN = (
    "train plays.yaml --servers",
    "jobs/billions.yaml",
    "dashboard",
    "tune",
    "submit",
    "serve",
    "prepare --format lightgcn",
    "jobs/lastfm_split.yaml",
)
"""Words of commands that start processes, take minutes, or need large or published data; they are only parsed."""
FIRST_ID, OTHER_ID = 1234, 5678
"""The customer and the tracks that README.md names."""


def write_events(path: Path, *, query: str, item: str, seed: int) -> None:
    """Write 800 events of 40 customers and 30 items."""
    random = np.random.default_rng(seed)
    query_N, item_N = FIRST_ID + random.integers(0, 40, 800), FIRST_ID + random.integers(0, 30, 800)
    item_N[::20] = OTHER_ID
    pq.write_table(pa.table({query: query_N, item: item_N}), path)


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """Write what a reader of README.md has: events, a list of IDs, and ``runs/lastfm`` as 'make train' leaves it."""
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    write_job = "echo '{name: plays, data: {path: data/plays}}' > plays.yaml"
    assert write_job in (ROOT / "README.md").read_text(encoding="utf-8")
    subprocess.run(["sh", "-c", write_job], cwd=tmp_path, check=True)
    for seed, name in enumerate(("plays", "day2")):
        write_events(tmp_path / f"{name}.parquet", query="user_id", item="track_id", seed=seed)
    (tmp_path / "music.yaml").write_text(
        "name: music\nevents: [day2.parquet]\nprepare: {query: customer=user_id, item: track=track_id}\n"
        "settle_seconds: 0\n"
    )
    (tmp_path / "ids.txt").write_text(f"{FIRST_ID + 1}\n")
    write_events(tmp_path / "lastfm.parquet", query="customer", item="artist", seed=2)
    prepared = ("--item", "artist", "--hold-out", "random:0.1", "--out", "data/lastfm")
    succeeded(crossfade_here("prepare", "--events", "lastfm.parquet", *prepared, cwd=tmp_path))
    succeeded(crossfade_here("train", "jobs/lastfm.yaml", cwd=tmp_path))
    return tmp_path


@pytest.mark.slow
def test_commands_of_the_readme_run_as_they_stand(reader: Path) -> None:
    run = []
    for words in commands((ROOT / "README.md").read_text(encoding="utf-8")):
        if any(word in " ".join(words) for word in NOT_RUN):
            continue
        if "--explain" in words:
            with pytest.raises(SystemExit):
                crossfade_here(*words, cwd=reader)
        else:
            succeeded(crossfade_here(*words, cwd=reader))
        run.append(words[0])
    assert {"prepare", "train", "similar", "status", "evaluate", "recommend", "export"} <= set(run)
    assert (reader / "services" / "music" / "version-000001" / "report.json").exists()
