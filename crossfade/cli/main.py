"""Run the command line ``crossfade``, and turn exceptions into messages and exit codes.

    sys.exit(main(["train", "jobs/lastfm.yaml"]))

Exit codes: 0 success; 1 the run failed; 2 invalid input, reported in one line; 75 the host is being interrupted (a spot
instance), so resume elsewhere; 130 and 143 stopped by SIGINT or SIGTERM; 141 the reader of the output has ended.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from crossfade.base import logs
from crossfade.base.errors import CrossfadeError, OptionWords, worded
from crossfade.base.exit_codes import INTERRUPTED_EXIT_CODE
from crossfade.base.io.disk_errors import describe_disk_error
from crossfade.base.memory_limit import lack_of_memory
from crossfade.base.packages import hidden
from crossfade.base.signals import SpotInterruption, StopSignal, stopper
from crossfade.cli.command import Command, CommandParser
from crossfade.kvstore import __version__

_logger = logging.getLogger(__name__)
_SIGPIPE = 13
"""The signal, which Windows lacks."""
_EPILOG = """\
From listening events to embeddings:
  crossfade prepare --events plays.parquet --query customer=user_id --item track=track_id \\
                    --hold-out random:0.1 --out data/plays
  echo '{name: plays, data: {path: data/plays}}' > plays.yaml
  crossfade train plays.yaml
  crossfade recommend runs/plays --customer 42
  crossfade similar runs/plays 1234

Run crossfade COMMAND --help for the options and examples of a command.
"""

COMMANDS: dict[str, str | None] = {
    "prepare": "turn raw events into a dataset",
    "validate": "check a dataset",
    "forget": "delete IDs from a dataset",
    "synthesize": "generate a dataset",
    "schema": "print the JSON Schema of job files, for editors",
    "plan": "print the memory of a job, and whether it fits",
    "train": "train embeddings as a job file specifies",
    "tune": "search for the best settings of a job",
    "doctor": "check MXNet, the GPU's driver, and storage",
    "checkpoints": "list the checkpoints of a run",
    "status": "show the state of runs",
    "dashboard": "serve a page that shows runs",
    "export": "write embeddings as Parquet, numpy, safetensors, or for vector databases",
    "evaluate": "evaluate the embeddings of a run",
    "backtest": "train on the past of each window of time, and judge on the window",
    "recommend": "recommend items to customers",
    "index": "build an index of items for fast approximate search",
    "similar": "print the nearest neighbors of items or queries",
    "map": "draw items as a map, colored by genre",
    "serve": "serve recommendations over HTTP",
    "refresh": "keep a model fresh from event files that arrive",
    "rollback": "publish an earlier version of a service again",
    "demo": "try everything on a sample",
    "submit": "run a job on AWS",
    "agent": "run roles of a job that another host coordinates",
    "ec2-host": None,
}
"""What each command does, verb first, in the order of ``crossfade --help``, which leaves out those without text."""


_TOP_OPTIONS = {"-h", "--help", "--version"}


def make_parser(only: Collection[str] = COMMANDS) -> argparse.ArgumentParser:
    """Build the parser of the command line; the options of commands other than ``only`` are left out.

    Options are declared in the modules of the commands, and importing all of them takes time.
    """
    parser = CommandParser(
        prog="crossfade",
        description="Train embeddings of customers and music from listening events, with row-sparse updates.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"crossfade {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name in only:
            load_command(name).add_to(commands, summary)
        elif summary is not None:
            commands.add_parser(name, help=summary)
    return parser


def load_command(name: str) -> Command[Any]:
    """Import the command ``name``."""
    found: Command[Any] = importlib.import_module(f"crossfade.cli.{name.replace('-', '_')}").run
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command with ``arguments``, by default those of the process; return its exit code."""
    hiding: AbstractContextManager[None] = nullcontext()
    if arguments is None:
        arguments = sys.argv[1:]
        # Pyarrow would import pandas to return arrays: 40 MiB and a fifth of a second.
        hiding = nullcontext() if _needs_pandas(arguments) else hidden("pandas")
        # Crossfade has no plugins for pydantic, which would look for them in the metadata of all packages.
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    logs.configure_console()
    parsed = _parse(arguments)
    with hiding:
        return exit_code_of(lambda: parsed.run(parsed), parsed.parser.word)


def exit_code_of(run: Callable[[], int], words: OptionWords) -> int:
    """Return the exit code of the command ``run``, which logs, stops at signals, and may fail, as commands do."""
    stopper.listen()
    try:
        return run()
    except BaseException as error:
        return _report(error, words)


def _needs_pandas(arguments: Sequence[str]) -> bool:
    """Return whether a package that the command in ``arguments`` uses needs pandas."""
    user = {"recommend": "spark", "export": "mlflow"}.get(arguments[0]) if arguments else None
    return user is not None and any(word.endswith(user) for word in arguments)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    command = arguments[0] if arguments else None
    is_general = _TOP_OPTIONS.issuperset(arguments)
    parser = make_parser(() if is_general else COMMANDS if command not in COMMANDS else (command,))
    if command is not None and not command.startswith("-") and command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        parser.error(f"there is no command '{command}'{hint}")
    return parser.parse_args(arguments)


def _report(error: BaseException, words: OptionWords) -> int:
    """Report ``error`` and return its exit code; raise a bug again, which needs its traceback."""
    if stopper.number is not None:
        how = f" {worded(error.args, words)}" if isinstance(error, StopSignal) and error.args else ""
        _logger.warning(f"stopped by {signal.Signals(stopper.number).name}{how}")
        return 128 + stopper.number
    if message := lack_of_memory(error):
        error = CrossfadeError(message)
    match error:
        case SpotInterruption():
            _logger.warning(f"stopped {worded(error.args, words)}")
            return INTERRUPTED_EXIT_CODE
        case CrossfadeError():
            for line in error.details:
                _logger.warning(worded(line, words))
            _logger.error(error.worded(words))
            return error.exit_code
        case BrokenPipeError():  # the reader of stdout, such as head, has ended; the command may not be done
            sys.stderr.close()
            return 128 + _SIGPIPE
        case OSError():
            # An error of the machine, not of the program: a full disk, a deleted folder.
            _logger.error(describe_disk_error(error))
            return 1
    raise error
