"""``crossfade serve``: answer requests for recommendations, similar rows and vectors over HTTP."""

from __future__ import annotations

from crossfade.cli.command import as_command
from crossfade.deploy.serving.options import TOKEN_VARIABLE, ServeOptions
from crossfade.terminal import print_line

_DESCRIPTION = """\
Serve a trained model over HTTP: recommendations, similar rows, and vectors, as JSON.
"""
_EXAMPLES = (
    ("crossfade serve runs/lastfm", "Serve a run at http://127.0.0.1:8090/; /docs shows the routes."),
    (
        "crossfade serve s3://music/checkpoints/plays --data s3://music/plays --metadata songs.csv",
        "Serve the newest checkpoint on S3, with filters by the songs' metadata.",
    ),
    ("crossfade serve", "Serve the model in /opt/ml/model, as a SageMaker endpoint starts it."),
)
_NOTES = f"""\
The model, its IDs and the items that customers know are first copied to the working folder; requests need nothing
else. From 50,000 items on, an index is built, which takes about a minute for a million.

Every --refresh seconds FROM is checked for newer embeddings or a newer checkpoint, which replaces the model while
requests are being answered. A model that cannot be read is reported, and the last one is served on.

Routes: GET or POST /recommend and /similar; GET /vector, /model, /healthz and /metrics (Prometheus); GET /ping and
POST /invocations for SageMaker. /docs shows them with examples, /openapi.json describes them.

  curl 'http://127.0.0.1:8090/recommend?id=2&k=5'
  curl 'http://127.0.0.1:8090/similar?id=Radiohead'

With a token, by --token-file or in {TOKEN_VARIABLE}, requests need the header 'Authorization: Bearer TOKEN',
except for /healthz, /ping and /docs. Nothing is encrypted: by default, the server listens on loopback. Without FROM, it
serves /opt/ml/model on all addresses and by any name, port 8080, as SageMaker expects.

Exit codes: 0 stopped by SIGINT or SIGTERM, after the last request; 2 invalid input, or a corrupt model.
"""


@as_command("serve", _DESCRIPTION, _EXAMPLES, _NOTES)
def run(options: ServeOptions) -> int:
    """Serve until a signal arrives.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        InputError: an option is invalid, or the model or its dataset is missing.
    """
    from crossfade.deploy.serving.server import serve
    from crossfade.display import progress_bars

    located = options.located()

    def on_listening(address: str) -> None:
        bars.close()
        print_line(f"serving {located.source}: {address}", flush=True)

    with progress_bars() as bars:
        serve(located, bars, on_listening)
    return 0
