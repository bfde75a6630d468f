"""``crossfade tag``: predict labels of items, such as genres, by linear probes of their embeddings."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.base.text import counted
from crossfade.cli.command import add_command
from crossfade.cli.options.history import add_history_option
from crossfade.terminal import print_line

if TYPE_CHECKING:
    import pyarrow as pa

    from crossfade.trainer.recommend.tagging import Tagger, TagOptions, TagQuality
    from crossfade.trainer.recommend.trained_model import TrainedModel

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ("crossfade tag runs/lastfm --labels artist=tag", "Measure how well artists' tags are predicted."),
    (
        "crossfade tag runs/lastfm --labels artist=tag --min-count 2 --out tags.parquet",
        "Write tags for the artists that have none, but two listeners.",
    ),
    (
        "crossfade tag runs/plays --labels track=songs.csv:id:genre -k 1 --threshold 0 --out genres.parquet",
        "Write a genre for every track that has none in a file.",
    ),
)
_NOTES = """\
FROM is a run folder, a folder of checkpoints or one checkpoint, each of which may be on S3.

For each label, a logistic regression is fitted to the embeddings, which stay as they are. Of the rows with a label,
60 % are fitted and 20 % choose the regularization; the last 20 % are tested after a fit to both others. The table has
ROC-AUC and PR-AUC (average precision), averaged over labels, PR-AUC of all pairs in one ranking (micro), and the
fraction of rows whose best label is right. The baselines are the same probe of a row's interactions in train by
customer (TF-IDF), of their truncated SVD with as many columns as the embeddings, and the frequency of labels.

--out writes a row per predicted label: ITEM, label, probability, and ITEM_name if the dataset has names. It has the
rows without any label whose vector is trained. They may have fewer interactions than those with a label, which the
measurement does not show unless --min-count makes both alike.

Limits: a label that a row does not have counts as wrong, even if nobody has added it yet. The 500 most frequent labels
are used, and 20,000 random rows with a label; counts are of a sample of customers with more than 8 million
interactions. Labels that the model was trained with, as a feature, are not a fair test, and cause a warning.
"""
_METHODS = {
    "embeddings": "embeddings",
    "counts": "interactions, TF-IDF",
    "counts_svd": "interactions, TF-IDF, truncated SVD",
    "frequency": "frequency of labels",
}
_EXAMPLES_SHOWN = 8


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "tag",
        "predict labels of items, such as genres",
        "Predict labels, such as genres, from embeddings: measure how well, then label the items that have none.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    source = parser.add_argument_group("input")
    source.add_argument("source", metavar="FROM", help="read this run folder, folder of checkpoints, or checkpoint")
    source.add_argument("--data", metavar="DATA", help="read IDs and interactions here (default: data.path of the job)")
    add_history_option(source)
    source.add_argument(
        "--labels",
        required=True,
        metavar="ENTITY=FILE:ID_COLUMN:LABEL_COLUMN",
        help="learn these labels, from a Parquet, CSV or TSV file or, with ENTITY=FEATURE, from the dataset",
    )
    source.add_argument(
        "--min-items", type=int, default=50, metavar="N", help="use labels that at least N rows have (default: 50)"
    )
    source.add_argument(
        "--min-count",
        type=int,
        default=0,
        metavar="N",
        help="use only rows with N interactions of positive weight in train, and predict only theirs (default: 0)",
    )
    source.add_argument("--seed", type=int, default=1, metavar="N", help="divide rows with this seed (default: 1)")
    predictions = parser.add_argument_group("predictions")
    predictions.add_argument(
        "--threshold", type=float, default=0.3, metavar="P", help="predict labels of this probability (default: 0.3)"
    )
    predictions.add_argument(
        "-k", type=int, default=3, metavar="N", help="predict at most N labels of a row (default: 3)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, metavar="FILE", help="write predicted labels to this file: .parquet, .csv, or .jsonl"
    )
    output.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    output.add_argument("--json", action="store_true", help="print the measurement as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, predict, and print or write the result.

    Raises:
        CheckpointError: every checkpoint is corrupt or cannot be read.
        InputError: an option is invalid, the labels cannot be read, or the model or its dataset is missing.
    """
    from crossfade.trainer.recommend.trained_model import with_trained_model

    options = _read_options(arguments)
    with_trained_model(
        arguments.source,
        arguments.data,
        _logger.info,
        lambda model: _tag(model, options, arguments),
        history_from_this_dataset_only=arguments.history_from_this_dataset_only,
    )
    return 0


def _read_options(arguments: argparse.Namespace) -> TagOptions:
    from crossfade.base.errors import InputError
    from crossfade.trainer.evaluation.labels import LabelSource
    from crossfade.trainer.recommend.table_files import check_format
    from crossfade.trainer.recommend.tagging import MIN_ITEMS, TagOptions

    source = LabelSource.parse(arguments.labels)
    for option, value, least in (
        ("--min-items", arguments.min_items, MIN_ITEMS),
        ("--min-count", arguments.min_count, 0),
        ("--seed", arguments.seed, 0),
        ("-k", arguments.k, 1),
    ):
        if value < least:
            raise InputError(f"{option} {value}: expected {least} or more")
    if not 0 <= arguments.threshold <= 1:
        raise InputError(f"--threshold {arguments.threshold}: expected a probability from 0 to 1")
    out = arguments.out
    if out is not None:
        check_format(out)
    if out is not None and out.exists() and not arguments.overwrite:
        raise InputError(f"--out {out}: already exists; choose another, or replace it with --overwrite")
    return TagOptions(
        source, arguments.min_items, arguments.min_count, arguments.threshold, arguments.k, arguments.seed
    )


def _tag(model: TrainedModel, options: TagOptions, arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    import numpy as np

    from crossfade.base.io.disk_errors import write_error
    from crossfade.display import progress_bars
    from crossfade.trainer.recommend.table_files import write_tables
    from crossfade.trainer.recommend.tagging import Tagger

    examples, written = None, 0
    with progress_bars() as bars:
        tagger = Tagger(model, options, bars)
        quality = tagger.measure()
        strength = quality.strength["embeddings"]
        if arguments.out is not None:
            try:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                written = write_tables(arguments.out, _tables(model, tagger, strength, tagger.unlabeled_N))
            except OSError as error:
                raise write_error(f"--out {arguments.out}", error, arguments.out) from error
        elif not arguments.json:
            frequent_N = np.argsort(-tagger.count_R[tagger.unlabeled_N], kind="stable")[:_EXAMPLES_SHOWN]
            examples = list(_tables(model, tagger, strength, np.sort(tagger.unlabeled_N[frequent_N])))
    if arguments.json:
        print(json.dumps(asdict(quality)))
        return
    _print_quality(tagger, quality, options)
    if examples is not None:
        _print_examples(tagger.entity, [row for table in examples for row in table.to_pylist()])
    else:
        print_line(f"{counted(written, 'label')} of {len(tagger.unlabeled_N):,} rows without one: {arguments.out}")


def _tables(model: TrainedModel, tagger: Tagger, strength: float, rows_N: Any) -> Iterator[pa.Table]:
    """Yield the predicted labels of ``rows_N`` as tables, at least one."""
    import numpy as np
    import pyarrow as pa

    from crossfade.trainer.recommend.tagging import PredictedLabels

    vocabulary = model.vocabulary(tagger.entity)
    none = PredictedLabels(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    labels = pa.array(tagger.labels, pa.string())
    for predicted in [none] if not len(rows_N) else tagger.predict(strength, rows_N):
        row_N, place_N = np.unique(predicted.row_N, return_inverse=True)
        found = vocabulary.take(row_N).take(pa.array(place_N))
        columns = {
            tagger.entity: found.column("id"),
            "label": labels.take(pa.array(predicted.label_N)),
            "probability": predicted.probability_N,
        }
        if "name" in found.column_names:
            columns[f"{tagger.entity}_name"] = found.column("name")
        yield pa.table(columns)


def _print_quality(tagger: Tagger, quality: TagQuality, options: TagOptions) -> None:
    fitted, validated, tested = quality.rows
    print_line(
        f"{sum(quality.rows):,} rows of {tagger.entity} with {quality.labels:,} labels, {quality.labels_per_row:.1f} "
        f"per row: {fitted:,} fitted, {validated:,} to choose the regularization, {tested:,} tested"
    )
    print_line(f"{'ROC-AUC':>8}  {'PR-AUC':>8}  {'micro':>8}  {'precision@1':>11}")
    for name, features in _METHODS.items():
        if name in quality.metrics:
            method = features
            values = [f"{value:.4f}" for value in quality.metrics[name].values()]
            columns = "  ".join(f"{value:>{width}}" for value, width in zip(values, (8, 8, 8, 11), strict=True))
            if name in quality.columns:
                method += f", {quality.columns[name]:,} columns, C = {quality.strength[name]:g}"
            print_line(f"{columns}  {method}")
    kept = quality.kept
    print_line(
        f"predicted labels ({options.k} at most, probability {options.threshold:g}): {kept['precision']:.0%} right, "
        f"{kept['labels_per_row']:.1f} per row, {kept['share']:.0%} of rows have one"
    )


def _print_examples(entity: str, rows: list[dict[str, Any]]) -> None:
    """Print the predicted labels of each row in a line."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        name = str(row.get(f"{entity}_name") or row[entity])
        lines.setdefault(name, []).append(f"{row['label']} {row['probability']:.2f}")
    if lines:
        print_line("predicted for the most frequent rows without a label; --out writes all:")
    for name, labels in lines.items():
        print_line(f"  {name}: {', '.join(labels)}")
