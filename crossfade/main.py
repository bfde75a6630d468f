"""The command ``crossfade``: parse, call, report.

Exit codes: 0 done; 1 the run failed; 2 the input is wrong, said in one line; 130 and 143 stopped by SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from crossfade import evaluate, prepare, roles, similar, train
from kvstore import __version__
from kvstore.errors import CrossfadeError

_EPILOG = """\
From listening events to embeddings:
  crossfade prepare --events plays.parquet --query customer=user_id --item track=track_id \\
                    --hold-out random:0.1 --out data/plays
  crossfade train jobs/lastfm.yaml --set data.shards=data/plays
  crossfade similar runs/lastfm --entity track 1234

Each command has a --help of its own.
"""


class Stopped(BaseException):
    """A signal asked this process to stop."""


class _Stopper:
    """Raises ``Stopped`` at the first SIGINT or SIGTERM, and remembers it: compiled code may turn it into an error."""

    def __init__(self) -> None:
        self.number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        # A second signal ends at once: the first is being obeyed, and may hang on something.
        signal.signal(number, signal.SIG_DFL)
        self.number = number
        raise Stopped


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
    for module in (prepare, train, evaluate, similar, roles):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parsed = make_parser().parse_args(arguments)
    stopper = _Stopper()
    try:
        code: int = parsed.run(parsed)
    except BaseException as error:
        if stopper.number is not None:
            print(f"crossfade: stopped by {signal.Signals(stopper.number).name}", file=sys.stderr)
            return 128 + stopper.number
        if isinstance(error, CrossfadeError):
            print(f"crossfade: error: {error}", file=sys.stderr)
            return error.exit_code
        if isinstance(error, BrokenPipeError):
            # Whoever read our output, such as head, has seen enough.
            sys.stderr.close()
            return 0
        raise
    return code
