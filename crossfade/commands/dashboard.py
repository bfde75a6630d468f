"""``crossfade dashboard``: a page that shows runs, as they go on and once they are over."""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_PORT = 8050
_DESCRIPTION = """\
Serve a page that shows runs: loss, quality and throughput as they come; where the time of a step goes; bytes moved
against dense gradients; each server's rows, memory and load; checkpoints, restarts and what wants attention; the
resolved job; and several runs compared. It reads the run folders alone, needs no internet, and new runs appear by
themselves. Whoever can reach the page can read it, and nothing else: it listens on loopback unless --host says
otherwise.
"""
_EPILOG = """\
Examples:
  crossfade dashboard                                 the runs in runs/, at http://127.0.0.1:8050/
  crossfade dashboard runs/lastfm runs/plays          two runs
  crossfade dashboard /shared/runs --host 0.0.0.0     for others on a network that one trusts

In the page's address, ?run=lastfm&run=plays picks runs. /healthz answers 200. 'crossfade train --dashboard' serves the
page of its run while it trains. 'crossfade status' shows the same in the terminal.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    from crossfade.commands.status import add_runs_argument

    parser = commands.add_parser(
        "dashboard",
        help="serve a page that shows runs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_runs_argument(parser)
    parser.add_argument("--host", default="127.0.0.1", metavar="A", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=port, default=DEFAULT_PORT, metavar="N", help=f"port; 0: a free one (default: {DEFAULT_PORT})"
    )
    parser.set_defaults(run=run)


def port(text: str) -> int:
    """A port from the command line."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port, but found '{text}'")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until a signal comes."""
    from crossfade.commands.status import named_runs
    from deploy.cluster.agent import die_with_agent
    from deploy.dashboard.server import serve

    die_with_agent()

    paths: list[Path] = arguments.runs
    what = ", ".join(map(str, paths)) or "runs"
    serve(
        named_runs(paths),
        what,
        arguments.host,
        arguments.port,
        lambda address: print(f"dashboard: {address}", flush=True),
    )
    return 0
