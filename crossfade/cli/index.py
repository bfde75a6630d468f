"""``crossfade index``: build an approximate nearest-neighbor index of a model's vectors."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.text import counted
from crossfade.cli.command import add_command
from crossfade.cli.options.history import add_history_option
from crossfade.terminal import print_json, print_line

if TYPE_CHECKING:
    from crossfade.trainer.recommend.index_build import IndexRequest
    from crossfade.trainer.recommend.index_folder import IndexCard
    from crossfade.trainer.recommend.trained_model import TrainedModel

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ("crossfade index runs/lastfm --out indexes/artists", "Index the items by the score of the job."),
    ("crossfade recommend runs/lastfm --customer 2 --index indexes/artists", "Search it for a customer's items."),
    (
        "crossfade index runs/plays --out indexes/tracks --metric cosine --codes sq8",
        "Index them by cosine, which 'crossfade similar' needs, in a quarter of the memory.",
    ),
    ("crossfade similar runs/plays 1234 --index indexes/tracks", "Search it for similar tracks."),
)
_NOTES = """\
FROM is a run folder, a folder of checkpoints or one checkpoint, each of which may be on S3. The embeddings of a run are
used if it has written any, otherwise its newest complete checkpoint. Rows without an ID, and queries and items without
an interaction of positive weight in train (unless they have features), are left out.

FOLDER gets index.faiss, an inverted file of FAISS; rows.parquet with row, id and name of the indexed rows; and
card.json with the model, the metric, the parameters, recall@10 and recall@100 against exact search, and queries per
second with and without the index. It is complete or, after an error, absent.

The metric is part of the index: 'crossfade recommend' needs that of the job (model.score), 'crossfade similar' needs
cosine. Another model, dataset, entity or metric is rejected.

  cosine     inner product of vectors that are scaled to length 1
  dot        inner product of vectors as they are
  euclidean  squared distance

Memory, for vectors of D columns: index.faiss has 4·D + 8 bytes per row, or D + 8 with --codes sq8; for dot, D is one
larger, or up to eight with sq8. Building takes up to twice as much, since lists grow by doubling: 410 and 140 bytes per
row for 64 columns. Vectors are read in blocks, twice: a sample for k-means, then all of them. A search maps the file,
and reads the lists that it scans.

Exit codes: 0 done; 1 the checkpoint is corrupt, or FOLDER cannot be written; 2 invalid input; 130 and 143 stopped.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "index",
        "build an index of items for fast approximate search",
        "Build an approximate nearest-neighbor index of the vectors of a trained model.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    source = parser.add_argument_group("input")
    source.add_argument("source", metavar="FROM", help="read this run folder, folder of checkpoints, or checkpoint")
    source.add_argument("--entity", metavar="NAME", help="index this table (default: the item entity of the run's job)")
    source.add_argument("--data", metavar="DATA", help="read IDs and names here (default: data.path of the job)")
    add_history_option(source)
    index = parser.add_argument_group("index")
    index.add_argument(
        "--metric",
        choices=["dot", "cosine", "euclidean"],
        help="search by this score (default: model.score of the job)",
    )
    index.add_argument(
        "--codes",
        choices=["flat", "sq8"],
        default="flat",
        help="store vectors as float32 (flat) or in 8 bits per column (sq8) (default: flat)",
    )
    index.add_argument(
        "--recall",
        type=float,
        default=0.95,
        metavar="R",
        help="scan as many lists as a recall@100 of R needs, measured by 1,000 queries (default: 0.95)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="write to this local folder")
    output.add_argument("--overwrite", action="store_true", help="replace the index in the folder")
    output.add_argument("--json", action="store_true", help="print the card as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Build the index, and print its card.

    Raises:
        CheckpointError: every checkpoint is corrupt or cannot be read.
        InputError: an option is invalid, the model or its dataset is missing, or the folder may not be replaced.
    """
    from crossfade.base.errors import InputError
    from crossfade.trainer.recommend.index_build import IndexRequest
    from crossfade.trainer.recommend.trained_model import with_trained_model

    if not 0 < arguments.recall <= 1:
        raise InputError(f"--recall {arguments.recall}: expected a number above 0, of 1 at most")
    if str(arguments.out).startswith("s3:"):
        raise InputError(
            f"--out {arguments.out}: expected a local folder, since FAISS reads local files; upload it then"
        )
    request = IndexRequest(
        arguments.out, arguments.entity, arguments.metric, arguments.codes, arguments.recall, arguments.overwrite
    )
    card = with_trained_model(
        arguments.source,
        arguments.data,
        _logger.info,
        lambda model: _build(model, request),
        history_from_this_dataset_only=arguments.history_from_this_dataset_only,
    )
    if card.measured.recall_at_100 < arguments.recall:
        _logger.warning(
            f"recall@100 is {card.measured.recall_at_100:.4f} with all {card.index.lists} lists; --codes flat is exact"
        )
    if arguments.json:
        print_json(card.model_dump(mode="json"))
    else:
        _print(card, arguments.out)
    return 0


def _build(model: TrainedModel, request: IndexRequest) -> IndexCard:
    from crossfade.display import progress_bars
    from crossfade.trainer.recommend.index_build import build_index

    with progress_bars() as bars:
        return build_index(model, request, bars)


def _print(card: IndexCard, out: Path) -> None:
    from crossfade.trainer.recommend.index_folder import INDEX_FILE

    measured = card.measured
    threads = counted(measured.threads, "thread")
    print_line(f"{card.rows:,} of {card.entity} x {card.dim} by {card.metric}: {out}")
    size = card.files[INDEX_FILE].bytes
    print_line(f"{size / 1e6:,.1f} MB ({size / card.rows:,.0f} bytes per row), built in {card.build_seconds:.1f} s")
    print_line(
        f"scans {card.index.probes} of {card.index.lists} lists: "
        f"recall@10 {measured.recall_at_10:.4f}, recall@100 {measured.recall_at_100:.4f}"
    )
    print_line(
        f"{measured.queries_per_second:,.0f} queries/s, exactly {measured.exact_queries_per_second:,.0f}, of "
        f"{measured.queries:,} of {measured.query_entity} with {threads}"
    )
