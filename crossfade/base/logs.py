"""Configure logging: readable lines in terminals, timestamped text or JSON lines for processes that run for long.

    LogOptions(log_format="json").configure("worker-0", generation=2)
    logging.getLogger(__name__).info("joined")

    {"time": "2026-03-01T12:00:00.123Z", "level": "INFO", "role": "worker-0", "generation": 2, "message": "joined"}

Modules log to ``logging.getLogger(__name__)``. Commands start in the console format, ``crossfade: MESSAGE`` on stderr
above any progress bar; a command with ``--log-format`` switches to text or JSON. Format and level are passed on to
child processes in the environment.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import model_validator

from crossfade.base.errors import InputError, escape_unprintable, to_json_line
from crossfade.base.options import Options, option

FORMATS, LEVELS = ("text", "json"), ("debug", "info", "warning", "error")
FORMAT_VARIABLE, LEVEL_VARIABLE = "CROSSFADE_LOG_FORMAT", "CROSSFADE_LOG_LEVEL"
_CONTEXT = ("role", "generation", "step")

context: dict[str, Any] = {}
"""The role, the generation, and the newest step of this process, for log records that lack them."""


class ConsoleFormatter(logging.Formatter):
    """Formats records for terminals: ``crossfade: MESSAGE``, and ``crossfade: error: MESSAGE`` for errors."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, followed by the traceback of an exception."""
        severity = "error: " if record.levelno >= logging.ERROR else ""
        lines = [f"crossfade: {severity}{record.getMessage()}", *_traceback(record)]
        return "\n".join(map(escape_unprintable, lines))


class TextFormatter(logging.Formatter):
    """Formats records as ``TIME LEVEL ROLE [generation=N] [step=N] MESSAGE``; so is each line of a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, followed by one for each line of a traceback."""
        known = _context_of(record)
        numbers = [f"{name}={value}" for name, value in known.items() if name != "role"]
        head = " ".join([_time(record), record.levelname, known.get("role", "-"), *numbers])
        return "\n".join(f"{head} {escape_unprintable(line)}" for line in [record.getMessage(), *_traceback(record)])


class JsonFormatter(logging.Formatter):
    """Formats records as JSON objects: time, level, role, generation and step (where known), message, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object in one line."""
        values = {"time": _time(record), "level": record.levelname, **_context_of(record)}
        values |= {"message": record.getMessage()}
        if traceback := _traceback(record):
            values["exception"] = "\n".join(traceback)
        return to_json_line(values)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _context_of(record: logging.LogRecord) -> dict[str, Any]:
    values = {name: getattr(record, name, context.get(name)) for name in _CONTEXT}
    return {name: value for name, value in values.items() if value is not None}


def _traceback(record: logging.LogRecord) -> list[str]:
    return logging.Formatter().formatException(record.exc_info).split("\n") if record.exc_info else []


class StderrHandler(logging.Handler):
    """Writes records to stderr, above any progress bar; a failed write is raised, as ``print`` does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write ``record``."""
        if "tqdm" in sys.modules:  # a process that has not imported it shows no progress bar
            from tqdm import tqdm

            tqdm.write(self.format(record), file=sys.stderr)
        else:
            sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()


class RoleLogHandler(StderrHandler):
    """Writes records to the log of a process that runs for long, and goes on without them where its disk is full."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write ``record``, unless the disk is full."""
        with suppress(OSError):
            super().emit(record)


class LogOptions(Options):
    """How a process that runs for long logs."""

    log_format: Literal["text", "json"] | None = option(
        None,
        f"write log lines as text or as JSON objects (default: {FORMAT_VARIABLE}, else text)",
        group="logging",
    )
    log_level: Literal["debug", "info", "warning", "error"] | None = option(
        None, f"set the least severe level to log (default: {LEVEL_VARIABLE}, else info)", group="logging"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_environment(cls, values: Any) -> Any:
        for name, variable, known in (("log_format", FORMAT_VARIABLE, FORMATS), ("log_level", LEVEL_VARIABLE, LEVELS)):
            found = os.environ.get(variable)
            if found is not None and values.get(name) is None:
                if found not in known:
                    raise InputError(f"{variable}: expected {' or '.join(known)}, but found '{found}'")
                values = {**values, name: found}
        return values

    def configure(self, role: str, generation: int | None = None) -> None:
        """Log timestamped lines of ``role`` to stderr, here and in child processes.

        Args:
            role: what this process is, as in ``worker-0``.
            generation: how many times the job was started, where that is known.
        """
        level = self.log_level or "info"
        os.environ.update({FORMAT_VARIABLE: self.log_format or FORMATS[0], LEVEL_VARIABLE: level})
        context.clear()
        context.update(role=role, generation=generation)
        _install(RoleLogHandler(), JsonFormatter() if self.log_format == "json" else TextFormatter(), level)


def configure_console(log_level: str = "info") -> None:
    """Log lines in the console format to stderr; child processes that write log lines inherit ``log_level``."""
    if log_level != "info":
        os.environ[LEVEL_VARIABLE] = log_level
    context.clear()
    _install(StderrHandler(), ConsoleFormatter(), log_level)


def is_console() -> bool:
    """Return whether log lines have the console format."""
    return any(isinstance(handler.formatter, ConsoleFormatter) for handler in logging.getLogger().handlers)


def _install(handler: StderrHandler, formatter: logging.Formatter, log_level: str) -> None:
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, StderrHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("crossfade").setLevel(log_level.upper())
