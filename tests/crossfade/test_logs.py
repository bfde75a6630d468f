"""Log lines: the formats, their context, and the logs of real roles."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from crossfade.base import logs
from crossfade.cli.main import main

TIME = 1_772_366_400.1239  # 2026-03-01 12:00:00 UTC


@pytest.fixture(autouse=True)
def _console_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Set first, so that what `configure` writes is removed at the end.
    for name in (logs.FORMAT_VARIABLE, logs.LEVEL_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    logs.context.clear()
    yield
    logs.configure_console()


def record(message: str, level: int = logging.INFO, **values: object) -> logging.LogRecord:
    record = logging.makeLogRecord({"msg": message, "levelno": level, "levelname": logging.getLevelName(level)})
    record.created = TIME
    record.__dict__.update(values)
    return record


WORKER = {"role": "worker-0", "generation": 2, "step": 0}


@pytest.mark.parametrize(
    ("formatter", "level", "values", "line"),
    [
        (logs.TextFormatter(), logging.INFO, {}, "2026-03-01T12:00:00.123Z INFO - Bj\\n"),
        (
            logs.TextFormatter(),
            logging.INFO,
            WORKER,
            "2026-03-01T12:00:00.123Z INFO worker-0 generation=2 step=0 Bj\\n",
        ),
        (logs.ConsoleFormatter(), logging.INFO, WORKER, "crossfade: Bj\\n"),
        (logs.ConsoleFormatter(), logging.ERROR, {}, "crossfade: error: Bj\\n"),
        (
            logs.JsonFormatter(),
            logging.WARNING,
            {"role": "worker-0", "step": None},
            '{"time": "2026-03-01T12:00:00.123Z", "level": "WARNING", "role": "worker-0", "message": "Bj\\n"}',
        ),
    ],
)
def test_line_has_the_message_and_what_is_known(
    formatter: logging.Formatter, level: int, values: dict[str, object], line: str
) -> None:
    assert formatter.format(record("Bj\n", level, **values)) == line


def test_each_line_of_a_traceback_has_time_and_role_and_is_one_value_of_json() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        failed = record("failed", logging.ERROR, exc_info=sys.exc_info(), role="server-0")
    first, second, *others = logs.TextFormatter().format(failed).split("\n")
    assert all(line.startswith("2026-03-01T12:00:00.123Z ERROR server-0 ") for line in (first, second, *others))
    assert (first.endswith(" failed"), second.endswith(" Traceback (most recent call last):")) == (True, True)
    assert json.loads(logs.JsonFormatter().format(failed))["exception"].endswith("ValueError: two\nlines")


def test_context_is_added_to_records(capsys: pytest.CaptureFixture[str]) -> None:
    logs.LogOptions(log_format="json").configure("worker-0", generation=3)
    logs.context.update(step=7)
    logging.getLogger("crossfade.trainer.x").info("one")
    logging.getLogger("crossfade.trainer.x").info("two", extra={"step": 8})
    logging.getLogger("crossfade.trainer.x").debug("hidden")
    values = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["role"], line["generation"], line["step"], line["message"]) for line in values] == [
        ("worker-0", 3, 7, "one"),
        ("worker-0", 3, 8, "two"),
    ]


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
