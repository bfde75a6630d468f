"""``crossfade serve``: answer requests for recommendations, similar rows and vectors over HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path

from crossfade.cli.command import add_command
from crossfade.cli.options.access import add_access_options, read_access
from crossfade.cli.options.filters import add_metadata_options, read_metadata
from crossfade.cli.options.history import add_history_option
from crossfade.cli.options.parsing import port, positive_integer
from crossfade.terminal import print_line

DEFAULT_PORT, SAGEMAKER_PORT = 8090, 8080
TOKEN_VARIABLE = "CROSSFADE_SERVE_TOKEN"  # noqa: S105 - the name of a variable
_INDEX_FROM = 50_000
_DESCRIPTION = """\
Serve a trained model over HTTP: recommendations, similar rows, and vectors, as JSON.
"""
_EXAMPLES = (
    ("crossfade serve runs/lastfm", "Serve a run at http://127.0.0.1:8090/; /docs shows the routes."),
    (
        "crossfade serve s3://music/checkpoints/plays --data s3://music/plays --metadata songs.csv --processes 4",
        "Serve the newest checkpoint on S3 by four processes, with conditions on the songs' metadata.",
    ),
    ("crossfade serve", "Serve the model in /opt/ml/model, as a SageMaker endpoint starts it."),
)
_NOTES = """\
FROM is a run folder, a folder of checkpoints or one checkpoint, each of which may be on S3. The embeddings of a run are
used if it has written any, otherwise its newest complete checkpoint. The model, its IDs and the items that customers
know are first copied to the working folder; requests need nothing else. From 50,000 items on, an index is built, which
takes about a minute for a million.

Every --refresh seconds FROM is checked for newer embeddings or a newer checkpoint, which replaces the model while
requests are being answered. A model that cannot be read is reported, and the last one is served on.

Routes: GET or POST /recommend and /similar; GET /vector, /search, /model, /healthz and /metrics (Prometheus); GET /ping
and POST /invocations for SageMaker. /docs shows them with examples, /openapi.json describes them.

  curl 'http://127.0.0.1:8090/recommend?id=2&k=5'
  curl 'http://127.0.0.1:8090/similar?id=Radiohead'

With a token, requests need the header 'Authorization: Bearer TOKEN', except for /healthz, /ping and /docs. Nothing is
encrypted: by default, the server listens on loopback. Without FROM, it serves /opt/ml/model on all addresses and by any
name, port 8080, as SageMaker expects.

Exit codes: 0 stopped by SIGINT or SIGTERM, after the last request; 1 the model is corrupt; 2 invalid input.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "serve", "serve recommendations over HTTP", _DESCRIPTION, examples=_EXAMPLES, notes=_NOTES
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "source",
        nargs="?",
        metavar="FROM",
        help="serve this run folder, folder of checkpoints, or checkpoint (default: /opt/ml/model)",
    )
    model.add_argument("--data", metavar="DATA", help="read IDs and interactions here (default: data.path of the job)")
    add_history_option(model)
    add_metadata_options(model, "offer the columns of this Parquet, CSV or TSV file for conditions on items")
    model.add_argument("--exact", action="store_true", help="rank all items exactly, never by an index")
    model.add_argument(
        "--refresh",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="check for a newer model at this interval; 0: never (default: 30)",
    )
    server = parser.add_argument_group("server")
    server.add_argument("--host", metavar="A", help="listen on this address (default: 127.0.0.1)")
    server.add_argument(
        "--port", type=port, metavar="N", help=f"listen on this port; 0: a free one (default: {DEFAULT_PORT})"
    )
    server.add_argument(
        "--processes", type=positive_integer, default=1, metavar="N", help="answer by N processes (default: 1)"
    )
    server.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="copy the model to this folder (default: a temporary one)"
    )
    add_access_options(server, TOKEN_VARIABLE)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal arrives.

    Raises:
        CheckpointError: every checkpoint is corrupt or cannot be read.
        InputError: an option is invalid, or the model or its dataset is missing.
    """
    import math

    from crossfade.base.errors import InputError
    from crossfade.deploy.serving.server import ModelOptions, ServerOptions, serve
    from crossfade.display import progress_bars

    if not (math.isfinite(arguments.refresh) and arguments.refresh >= 0):
        raise InputError(f"--refresh {arguments.refresh}: expected a number of seconds, 0 or more")
    location, data, host, default_port = _where(arguments)
    host = arguments.host or host
    metadata = read_metadata(arguments)

    def on_listening(address: str) -> None:
        bars.close()
        print_line(f"serving {location}: {address}", flush=True)

    with progress_bars() as bars:
        serve(
            ModelOptions(
                location,
                data,
                metadata,
                None if arguments.exact else _INDEX_FROM,
                history_from_this_dataset_only=arguments.history_from_this_dataset_only,
            ),
            ServerOptions(
                host,
                default_port if arguments.port is None else arguments.port,
                arguments.processes,
                arguments.refresh,
                arguments.work_dir,
                read_access(arguments, host, TOKEN_VARIABLE),
            ),
            bars,
            on_listening,
        )
    return 0


def _where(arguments: argparse.Namespace) -> tuple[str, str | None, str, int]:
    """Return the model, its dataset, and the address and port to listen on by default.

    Raises:
        InputError: no model is named, and this is not a SageMaker endpoint.
    """
    from crossfade.base.errors import InputError
    from crossfade.deploy.aws.sagemaker.endpoint import DATA_VARIABLE, MODEL_FOLDER

    if arguments.source is not None:
        return arguments.source, arguments.data, "127.0.0.1", DEFAULT_PORT
    if not MODEL_FOLDER.is_dir():
        raise InputError("FROM is missing; expected a run folder, a folder of checkpoints, or a checkpoint")
    import os

    from crossfade.deploy.access import ANY_HOST

    arguments.allowed_host.append(ANY_HOST)
    data = arguments.data or os.environ.get(DATA_VARIABLE)
    return str(MODEL_FOLDER), data, "0.0.0.0", SAGEMAKER_PORT  # noqa: S104 - SageMaker's network reaches only the endpoint
