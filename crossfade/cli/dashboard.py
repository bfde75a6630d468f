"""``crossfade dashboard``: serve a page that shows runs, while they train and afterwards, and services."""

from __future__ import annotations

from crossfade.cli.command import as_command
from crossfade.deploy.dashboard.options import TOKEN_VARIABLE, DashboardOptions
from crossfade.terminal import print_line

_DESCRIPTION = """\
Serve a page that shows runs and services, while they work and afterwards.

/explore searches the items of a run and shows neighbors and recommendations. The pages are read-only, need no internet
access, and are without a token open to everyone who can reach them: by default they listen on loopback.
"""
_EXAMPLES = (
    ("crossfade dashboard", "Show the runs in runs/ and the services in services/ at http://127.0.0.1:8050/."),
    ("crossfade dashboard runs/lastfm runs/plays --port 9000", "Show two runs on another port."),
    ("crossfade dashboard /shared/runs --host 0.0.0.0 --token-file token", "Serve it to those who have the token."),
)
_NOTES = f"""\
Without --token-file, {TOKEN_VARIABLE} has the token, if it is set. /healthz answers 200, without a token.
"""


@as_command("dashboard", _DESCRIPTION, _EXAMPLES, _NOTES)
def run(options: DashboardOptions) -> int:
    """Serve the page until a signal arrives."""
    from crossfade.deploy.dashboard.server import serve

    serve(options, lambda address: print_line(f"dashboard: {address}", flush=True))
    return 0
