"""The command ``crossfade``: parse, call, report.

Exit codes: 0 done; 1 the run failed; 2 the input is wrong, said in one line; 75 the host will soon be gone (a spot
notice), so go on elsewhere; 130 and 143 stopped by SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from crossfade import logs
from crossfade.commands import (
    agent,
    dashboard,
    ec2_host,
    evaluate,
    export,
    forget,
    plan,
    prepare,
    roles,
    similar,
    status,
    submit,
    synthesize,
    train,
    tune,
    validate,
)
from crossfade.signals import SpotInterruption, StopSignal, stopper
from kvstore import __version__
from kvstore.errors import CrossfadeError

_logger = logging.getLogger(__name__)
_EPILOG = """\
From listening events to embeddings:
  crossfade prepare --events plays.parquet --query customer=user_id --item track=track_id \\
                    --hold-out random:0.1 --out data/plays
  crossfade train jobs/lastfm.yaml --set name=plays --set data.path=data/plays --set data.item=track
  crossfade similar runs/plays 1234

Each command has a --help of its own.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="crossfade",
        description="Train embeddings of customers and music from listening events, with row-sparse updates.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"crossfade {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (
        prepare,
        validate,
        forget,
        synthesize,
        plan,
        train,
        tune,
        status,
        dashboard,
        export,
        evaluate,
        similar,
        submit,
        agent,
        roles,
        ec2_host,
    ):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    logs.configure_console()
    parsed = make_parser().parse_args(arguments)
    stopper.listen()
    try:
        code: int = parsed.run(parsed)
    except BaseException as error:
        if stopper.number is not None:
            how = f" {error}" if isinstance(error, StopSignal) and str(error) else ""
            _logger.warning("stopped by %s%s", signal.Signals(stopper.number).name, how)
            return 128 + stopper.number
        if isinstance(error, SpotInterruption):
            from deploy.aws.spot import INTERRUPTED_EXIT_CODE

            _logger.warning("stopped %s", error)
            return INTERRUPTED_EXIT_CODE
        if isinstance(error, CrossfadeError):
            _logger.error("%s", error)
            return error.exit_code
        if isinstance(error, BrokenPipeError):
            # Whoever read our output, such as head, has gone; the command may not have done all its work.
            sys.stderr.close()
            return 128 + signal.SIGPIPE
        if isinstance(error, OSError):
            # The machine, and not the program: a full disk, a folder that is gone.
            _logger.error("%s", error)
            return 1
        raise
    return code
