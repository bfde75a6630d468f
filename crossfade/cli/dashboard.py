"""``crossfade dashboard``: serve a page that shows runs while they train and afterwards."""

from __future__ import annotations

import argparse
from pathlib import Path

from crossfade.cli.command import add_command
from crossfade.cli.options.access import add_access_options, read_access
from crossfade.cli.options.history import add_history_option
from crossfade.cli.options.parsing import port
from crossfade.cli.options.runs import add_runs_argument, open_runs
from crossfade.terminal import print_line

DEFAULT_PORT = 8050
TOKEN_VARIABLE = "CROSSFADE_DASHBOARD_TOKEN"  # noqa: S105 - the name of a variable
_DESCRIPTION = """\
Serve a page that shows runs: loss, metrics and throughput; the time of a step by phase; bytes moved compared with dense
gradients; rows, memory and load of each server; checkpoints, restarts and alerts; the resolved job; and runs compared.

The page reads only the run folders, needs no internet access, and shows new runs as they appear. /explore searches the
items of a run and shows neighbors and recommendations, for which it also reads the dataset. The pages are read-only,
and without a token open to everyone who can reach them: by default they listen on loopback.
"""
_EXAMPLES = (
    ("crossfade dashboard", "Show the runs in runs/ at http://127.0.0.1:8050/."),
    ("crossfade dashboard runs/lastfm runs/plays --port 9000", "Show two runs on another port."),
    ("crossfade dashboard /shared/runs --host 0.0.0.0 --token-file token", "Serve it to those who have the token."),
)
_NOTES = """\
?run=lastfm&run=plays in the address selects runs. /healthz answers 200, without a token. 'crossfade train --dashboard'
serves the page of its run while it trains. 'crossfade status' prints the same in the terminal.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "dashboard",
        "serve a page that shows runs",
        _DESCRIPTION,
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    runs = parser.add_argument_group("runs")
    add_runs_argument(runs)
    add_history_option(runs)
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", metavar="A", help="listen on this address (default: 127.0.0.1)")
    server.add_argument(
        "--port",
        type=port,
        default=DEFAULT_PORT,
        metavar="N",
        help=f"listen on this port; 0: a free one (default: {DEFAULT_PORT})",
    )
    add_access_options(server, TOKEN_VARIABLE)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until a signal arrives."""
    from crossfade.deploy.cluster.role_variables import die_with_agent
    from crossfade.deploy.dashboard.server import serve

    die_with_agent()
    paths: list[Path] = arguments.runs
    title = ", ".join(map(str, paths)) or "runs"
    serve(
        open_runs(paths),
        title,
        arguments.host,
        arguments.port,
        read_access(arguments, arguments.host, TOKEN_VARIABLE),
        lambda address: print_line(f"dashboard: {address}", flush=True),
        history_from_this_dataset_only=arguments.history_from_this_dataset_only,
    )
    return 0
