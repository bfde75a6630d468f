"""Text from data on a terminal: no command prints what could control it."""

import logging
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import write_vocabulary
from cluster_data import CUSTOMERS, GENRES, TRACKS, planted_splits, write_data, write_job
from command_here import crossfade_here
from running_command import succeeded

from crossfade.base import logs
from crossfade.base.errors import escape_unprintable, to_json_line
from crossfade.terminal import PrintOptions, print_line, print_result

ROOT = Path(__file__).resolve().parents[2]
CONTROLS = "\x1b]52;c;eA==\x07\x1b[2J\x9b31m\r\n\u202egnp\u2066\x00"
"""A write to the clipboard, a cleared screen, a color, line ends, and text that runs to the left."""
ESCAPED = "\\x1b]52;c;eA==\\x07\\x1b[2J\\x9b31m\\r\\n\\u202egnp\\u2066\\x00"
READABLE = "Björk \u5b87\u591a\u7530\u3000\u30d2\u30ab\u30eb \u0645\u06cc\u200c\u062e\u0648 \U0001f469\u200d\U0001f3a4"
"""Names that need a joiner, or the space between Japanese words."""


def assert_harmless(text: str) -> None:
    for line in text.split("\n"):
        assert escape_unprintable(line) == line, ascii(line)


def test_controls_are_escaped_and_names_of_all_languages_kept() -> None:
    assert escape_unprintable(CONTROLS) == ESCAPED
    assert escape_unprintable(READABLE) == READABLE
    assert escape_unprintable("\udc9b") == "\\udc9b"  # of a file name that is not UTF-8


def test_result_is_printed_as_json_or_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"id": 7, "tags": ["a", 'b"']}, {"id": CONTROLS, "score": 0.5}]
    for options, expected in (
        (PrintOptions(), "shown\n"),
        (PrintOptions(json_=True), to_json_line(records) + "\n"),
    ):
        print_result(options, records, lambda: print_line("shown"))
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize("formatter", [logs.ConsoleFormatter(), logs.TextFormatter(), logs.JsonFormatter()])
def test_log_lines_have_no_controls(formatter: logging.Formatter) -> None:
    try:
        raise ValueError(CONTROLS)
    except ValueError:
        record = logging.LogRecord("crossfade", logging.ERROR, "", 0, CONTROLS, None, sys.exc_info())
    assert_harmless(formatter.format(record))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on a dataset whose IDs and names control the terminal."""
    folder = tmp_path_factory.mktemp("hostile")
    splits = planted_splits()
    sizes = {name: [[len(pairs[0])]] for name, pairs in splits.items()}
    counts = [np.bincount(rows) for rows in splits["train"]]
    customers = [f"c{row}{CONTROLS}" for row in range(CUSTOMERS)]
    tracks = [f"t{row}{CONTROLS}" for row in range(TRACKS)]
    names = [f"Genre {row % GENRES} Song {row}{CONTROLS}" for row in range(TRACKS)]
    entities = {
        "customer": write_vocabulary(folder / "data", "customer", customers, counts=counts[0]),
        "track": write_vocabulary(folder / "data", "track", tracks, counts=counts[1], names=names),
    }
    write_data(folder / "data", entities, {name: (splits[name], sizes[name]) for name in splits})
    write_job(folder / "job.yaml", folder / "data")
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder))
    return folder


@pytest.mark.slow
def test_no_command_prints_controls_of_names(hostile: Path) -> None:
    name, customer = f"Genre 1 Song 1{CONTROLS}", f"c3{CONTROLS}"
    other = f"Genre 2 Song 2{CONTROLS}"
    for command in (
        ("similar", "run", name),
        ("recommend", "run", "--customer", customer, "-k", 3),
        ("recommend", "run", "--customer", customer, "-k", 3, "--json"),
        ("recommend", "run", "--history", name, other),
        ("validate", "data"),
        ("evaluate", "run", "--split", "test"),
        ("status", "run"),
        ("export", "run", "--out", f"out{CONTROLS[:-1]}"),
    ):
        result = succeeded(crossfade_here(*command, cwd=hostile))
        assert_harmless(result.stdout)
        assert_harmless(result.stderr)
        assert command[0] in ("evaluate", "status") or "\\u202egnp" in result.stdout
    for command in (("similar", "run", f"none{CONTROLS}"), ("train", f"none{CONTROLS[:-1]}.yaml")):
        result = crossfade_here(*command, cwd=hostile)
        assert result.returncode == 2
        assert_harmless(result.stderr)
        assert "\\u202egnp" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [("schema",), ("train", "--explain")])
def test_command_whose_output_is_not_read_ends_with_141(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "crossfade", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.communicate()[1] == b""
    assert process.returncode == 128 + signal.SIGPIPE
