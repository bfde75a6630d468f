"""The arguments of ``fit``, declared once: for ``Recommender``, for ``help()``, and for the words of messages."""

from typing import Any

from crossfade.base.options import Integer, Options, option

READ = ("delimiter", "format", "id_type", "on_bad_line", "on_missing", "max_bad", "timestamp_format")
"""The options of a preparation that are keys of the argument ``read``."""
PREPARED_AS = {"plays": "train", "valid": "hold_out_valid", "test": "hold_out_test"}
"""What arguments are called in a preparation, where the name differs."""


class FitOptions(Options):
    """How events are read and held out, and what is trained on them."""

    query: str = option(..., "read customers from this column; NAME=COLUMN names them")
    item: str = option(..., "read items from this column; NAME=COLUMN names them")
    weight: str | None = option(None, "read weights from this column, below 0 for negative feedback; None: all weigh 1")
    timestamp: str | None = option(None, "read times from this column, which hold-outs by time need")
    names: dict[str, Any] | None = option(
        None, 'read names from these columns, by entity, such as {"artist": "artist_name"}'
    )
    read: dict[str, Any] | None = option(
        None, 'read dirty events so, such as {"on_bad_line": "skip"}: see docs/python-api.md'
    )
    valid: str | None = option(
        "random:0.1", "hold out to choose the best epoch: random:FRACTION, last-N, after:TIME, or None"
    )
    test: str | None = option(None, "hold out for the metrics of the report, in the same form")
    dim: Integer = option(64, "give embeddings this many columns", ge=1)
    epochs: Integer | None = option(None, "pass over the events at most this often; None: as in a job without it", ge=1)
    seed: Integer = option(1, "seed every random number", ge=0)
    settings: dict[str, Any] | None = option(None, 'set further keys of a job, such as {"train.batch_size": 4096}')
    progress: bool | None = option(None, "show progress bars; None: in terminals and notebooks")
