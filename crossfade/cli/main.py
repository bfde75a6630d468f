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
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from crossfade.base import logs
from crossfade.base.errors import CrossfadeError, worded
from crossfade.base.exit_codes import INTERRUPTED_EXIT_CODE
from crossfade.base.io.disk_errors import describe_disk_error
from crossfade.base.memory_limit import check_address_space, lack_of_memory
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

_ROLES = ("scheduler", "server", "worker")
COMMANDS = (
    *("prepare", "validate", "forget", "synthesize", "schema", "plan", "train", "tune", "doctor", "checkpoints"),
    *("status", "dashboard", "export", "evaluate", "recommend", "index", "similar", "map", "tag", "sequence"),
    *("serve", "demo", "submit", "agent", *_ROLES, "ec2-host"),
)
"""The commands in the order of ``crossfade --help``."""


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of the complete command line, or only of ``command``, which imports only that module."""
    parser = CommandParser(
        prog="crossfade",
        description="Train embeddings of customers and music from listening events, with row-sparse updates.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"crossfade {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in [each for each in COMMANDS if each == command] or COMMANDS:
        load_command(name).add_to(commands)
    return parser


def load_command(name: str) -> Command[Any]:
    """Import the command ``name``."""
    module, attribute = ("roles", name) if name in _ROLES else (name.replace("-", "_"), "run")
    found: Command[Any] = getattr(importlib.import_module(f"crossfade.cli.{module}"), attribute)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command with ``arguments``, by default those of the process; return its exit code."""
    logs.configure_console()
    # For no command, pyarrow needs pandas, which it would import to return arrays: 40 MiB and a fifth of a second.
    hiding = hidden("pandas") if arguments is None else nullcontext()
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = _parse(arguments)
    stopper.listen()
    try:
        if arguments[0] not in _ROLES:  # they report errors to their agents
            check_address_space(arguments[0])
        with hiding:
            code: int = parsed.run(parsed)
    except BaseException as error:
        failed = _exit_code(error, parsed.parser)
        if failed is None:
            raise
        return failed
    return code


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    command = arguments[0] if arguments else None
    parser = make_parser(command)
    if command is not None and not command.startswith("-") and command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "see 'crossfade --help'"
        parser.error(f"there is no command '{command}'; {hint}")
    return parser.parse_args(arguments)


def _exit_code(error: BaseException, parser: CommandParser) -> int | None:
    """Report ``error`` and return its exit code; None for a bug, which needs its traceback."""
    if stopper.number is not None:
        how = f" {worded(str(error), parser.word)}" if isinstance(error, StopSignal) and str(error) else ""
        _logger.warning(f"stopped by {signal.Signals(stopper.number).name}{how}")
        return 128 + stopper.number
    if message := lack_of_memory(error):
        error = CrossfadeError(message)
    match error:
        case SpotInterruption():
            _logger.warning(f"stopped {worded(str(error), parser.word)}")
            return INTERRUPTED_EXIT_CODE
        case CrossfadeError():
            for line in error.details:
                _logger.warning(worded(line, parser.word))
            _logger.error(error.worded(parser.word))
            return error.exit_code
        case BrokenPipeError():  # the reader of stdout, such as head, has ended; the command may not be done
            sys.stderr.close()
            return 128 + _SIGPIPE
        case OSError():
            # An error of the machine, not of the program: a full disk, a deleted folder.
            _logger.error(describe_disk_error(error))
            return 1
    return None
