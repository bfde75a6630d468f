"""Log lines: the formats, their context, and the logs of real roles."""

import json
import logging
import os
from collections.abc import Iterator

import pytest
from running_command import messages

from crossfade.base import logs
from crossfade.cli.main import main
from crossfade.deploy.cluster import run_role
from crossfade.trainer.runs.events import EpochEvent

TIME = 1_772_366_400.1239  # 2026-03-01 12:00:00 UTC


@pytest.fixture(autouse=True)
def _console_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Set first, so that what `configure` writes is removed at the end.
    for name in (logs.FORMAT_VARIABLE, logs.LEVEL_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    logs.configure_console()


def record(message: str, level: int = logging.INFO, **values: object) -> logging.LogRecord:
    record = logging.makeLogRecord({"msg": message, "levelno": level, "levelname": logging.getLevelName(level)})
    record.created = TIME
    record.__dict__.update(values)
    return record


def failed() -> logging.LogRecord:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        return record("failed", logging.ERROR, exc_info=(ValueError, error, error.__traceback__), role="server-0")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "2026-03-01T12:00:00.123Z INFO - joined"),
        ({"role": "worker-0"}, "2026-03-01T12:00:00.123Z INFO worker-0 joined"),
        (
            {"role": "worker-0", "generation": 2, "step": 0},
            "2026-03-01T12:00:00.123Z INFO worker-0 generation=2 step=0 joined",
        ),
    ],
)
def test_text_line_has_time_level_role_and_known_numbers(values: dict[str, object], line: str) -> None:
    assert logs.TextFormatter().format(record("joined", **values)) == line


def test_json_line_has_known_values_only() -> None:
    line = logs.JsonFormatter().format(record("Björk\n", logging.WARNING, role="worker-0", generation=2, step=None))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-03-01T12:00:00.123Z",
        "level": "WARNING",
        "role": "worker-0",
        "generation": 2,
        "message": "Björk\n",
    }


def test_every_line_of_text_traceback_has_time_and_role() -> None:
    lines = logs.TextFormatter().format(failed()).split("\n")
    assert all(line.startswith("2026-03-01T12:00:00.123Z ERROR server-0 ") for line in lines)
    assert lines[0].endswith(" failed")
    assert lines[1].endswith(" Traceback (most recent call last):")


def test_json_traceback_is_one_value() -> None:
    values = json.loads(logs.JsonFormatter().format(failed()))
    assert values["message"] == "failed"
    assert values["exception"].endswith("ValueError: two\nlines")


def test_text_message_cannot_break_its_line() -> None:
    assert logs.TextFormatter().format(record("a\nb\x1b[2J")).endswith("- a\\nb\\x1b[2J")


def test_console_line_is_prefixed_by_command_and_severity() -> None:
    formatter = logs.ConsoleFormatter()
    assert formatter.format(record("resuming from step 5")) == "crossfade: resuming from step 5"
    assert formatter.format(record("no such file", logging.ERROR)) == "crossfade: error: no such file"


def test_context_is_added_to_records(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("worker-0", "json", "info", generation=3)
    logs.context.update(step=7)
    logging.getLogger("crossfade.trainer.x").info("one")
    logging.getLogger("crossfade.trainer.x").info("two", extra={"step": 8})
    logging.getLogger("crossfade.trainer.x").debug("hidden")
    values = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["role"], line["generation"], line["step"], line["message"]) for line in values] == [
        ("worker-0", 3, 7, "one"),
        ("worker-0", 3, 8, "two"),
    ]


def test_configuring_again_replaces_format_and_context(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("worker-0", "json", "debug")
    assert not logs.is_console()
    logs.configure_console()
    assert logs.is_console()
    logging.getLogger("crossfade.deploy.x").info("joined")
    assert capsys.readouterr().err == "crossfade: joined\n"


def test_other_packages_are_logged_from_warning_level(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("agent", "text", "debug")
    logging.getLogger("botocore.x").info("hidden")
    logging.getLogger("botocore.x").warning("shown")
    assert messages(capsys.readouterr().err) == ["crossfade: shown"]


def test_child_processes_inherit_format_and_level() -> None:
    logs.configure("agent", "json", "warning")
    assert (os.environ[logs.FORMAT_VARIABLE], os.environ[logs.LEVEL_VARIABLE]) == ("json", "warning")


def test_error_of_train_is_a_json_line_if_requested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "nowhere.yaml", "--log-format", "json"]) == 2
    [line] = json_lines(capsys.readouterr().err)
    assert (line["level"], line["role"]) == ("ERROR", "train")
    assert str(line["message"]).startswith("nowhere.yaml: no such job file")


def test_unknown_format_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agent", "--join", "127.0.0.1:7", "--run-dir", "run", "--log-format", "xml"]) == 2
    assert "--log-format xml: expected text or json" in capsys.readouterr().err


def test_event_is_logged_with_flat_values(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("worker-0", "text", "info")
    run_role._log_event(EpochEvent(epoch=2, step=6, loss=8.179242293556511, valid={"recall@10": 0.25, "queries": 202}))
    line = "INFO worker-0 step=6 epoch epoch=2 loss=8.17924 valid.recall@10=0.25 valid.queries=202"
    assert capsys.readouterr().err.partition(" ")[2] == f"{line}\n"


def json_lines(text: str) -> list[dict[str, object]]:
    """Return the JSON objects among the lines of ``text``; native libraries may add other lines."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("CROSSFADE_LOG_LEVEL", "CROSSFADE_LOG_LEVEL: expected debug or info or warning or error, but found 'loud'"),
        ("CROSSFADE_LOG_FORMAT", "CROSSFADE_LOG_FORMAT: expected text or json, but found 'loud'"),
    ],
)
def test_variable_of_another_value_is_rejected(
    variable: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "loud")
    assert main(["train", "job.yaml"]) == 2
    assert capsys.readouterr().err.rstrip().endswith(expected)
