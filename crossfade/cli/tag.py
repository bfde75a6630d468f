"""``crossfade tag``: predict labels of items, such as genres, by linear probes of their embeddings."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.terminal import TableOptions, print_line, print_records, print_result
from crossfade.trainer.recommend.options import TagOptions
from crossfade.trainer.runs.options import ModelSource

if TYPE_CHECKING:
    from crossfade.trainer.recommend.tagging import Tagged, TagQuality

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ("crossfade tag runs/lastfm --labels tag", "Measure how well artists' tags are predicted."),
    (
        "crossfade tag runs/plays --labels genre --metadata songs.csv -k 1 --threshold 0 --out genres.parquet",
        "Write a genre for every track that has none in a file.",
    ),
)
_NOTES = """\
For each label, a logistic regression is fitted to the embeddings, which stay as they are. Of the rows with a label,
60 % are fitted and 20 % choose the regularization; the last 20 % are tested after a fit to both others.

--out writes a row per predicted label: ITEM, label, probability, and ITEM_name if the dataset has names. It has the
rows without any label whose vector is trained. They may have fewer interactions than those with a label, which the
measurement does not show. Labels that the model was trained with, as a feature, are not a fair test.
"""
_EXAMPLES_SHOWN = 8


class TagCommand(TableOptions, TagOptions, ModelSource):
    """The options of the command."""


@as_command(
    "tag",
    "Predict labels, such as genres, from embeddings: measure how well, then label the items that have none.",
    _EXAMPLES,
    _NOTES,
)
def run(options: TagCommand) -> int:
    """Measure, predict, and print or write the result.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        InputError: an option is invalid, the labels cannot be read, or the model or its dataset is missing.
    """
    from crossfade.display import progress_bars
    from crossfade.trainer.recommend.table_files import check_output
    from crossfade.trainer.recommend.tagging import tag
    from crossfade.trainer.recommend.trained_model import with_trained_model

    check_output(options.out, overwrite=options.overwrite)
    examples = 0 if options.json_ else _EXAMPLES_SHOWN
    with progress_bars() as bars:
        tagged = with_trained_model(options, _logger.info, lambda model: tag(model, options, bars, examples))
    print_result(options, asdict(tagged.quality), lambda: _print(tagged, options), lambda: _measured(tagged.quality))
    return 0


def _measured(quality: TagQuality) -> list[dict[str, Any]]:
    return [{"method": name, **found} for name, found in quality.metrics.items()]


def _print(tagged: Tagged, options: TagOptions) -> None:
    _print_quality(tagged.entity, tagged.quality, options)
    if tagged.written is None:
        _print_examples(tagged.entity, tagged.examples)
    else:
        print_line(f"{counted(tagged.written, 'label')} of {tagged.unlabeled:,} rows without one: {options.out}")


def _print_quality(entity: str, quality: TagQuality, options: TagOptions) -> None:
    fitted, validated, tested = quality.rows
    print_line(
        f"{counted(sum(quality.rows), 'row')} of {entity} with {counted(quality.labels, 'label')}, "
        f"{quality.labels_per_row:.1f} "
        f"per row: {fitted:,} fitted, {validated:,} to choose the regularization, {tested:,} tested"
    )
    print_records(_measured(quality))
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
