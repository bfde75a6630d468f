"""``crossfade recommend``: recommend items to customers, or to whatever the query entity is."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from crossfade.base.errors import Option, OptionError, escape_unprintable
from crossfade.base.options import option
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.terminal import TableOptions, print_line, print_lines, print_result
from crossfade.trainer.recommend.options import RecommendToOptions

if TYPE_CHECKING:
    from crossfade.trainer.recommend.bulk import Recommended
    from crossfade.trainer.recommend.model import Model

_SHOWN_VALUES = 3
_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ("crossfade recommend runs/lastfm --customer 2 3", "Recommend ten artists to each of two listeners."),
    (
        "crossfade recommend runs/lastfm --customer 2 --popularity-damping 0.5 --where \"list_contains(tag, 'jazz')\"",
        "Recommend jazz, and less popular artists.",
    ),
    (
        "crossfade recommend runs/lastfm --customer 2 --popularity-damping 0.15 --diversity 0.2 --exploration 0.01",
        "Recommend what is less popular and less alike, at the cost of about 1 % of recall.",
    ),
    (
        "crossfade recommend runs/plays --all -k 20 --max-per artist=2 --out recs.parquet",
        "Write twenty tracks for every customer, at most two of an artist.",
    ),
    (
        "crossfade recommend s3://music/runs/plays --all --shard 3/16 --out s3://music/recs/2026-03-01",
        "Write the third of sixteen shards of them; when all are written, repeat it with --merge instead.",
    ),
    (
        "crossfade recommend s3://music/checkpoints/plays --customers ids.txt --out recs.parquet",
        "Recommend to the customers in a file, by the newest checkpoint on S3.",
    ),
    (
        'crossfade recommend runs/lastfm --history "Radiohead" "Björk"',
        "Recommend to somebody new, by what they like.",
    ),
    (
        "crossfade recommend runs/lastfm_context --customer 2 --context tag=24",
        "Recommend in a context, to a model that has it.",
    ),
)
_NOTES = """\
Items and customers without an interaction of positive weight in train have no trained vector (unless they have
features). Such items are left out. Such customers, and unknown ones, are an error if --customer names them, and are
left out of --all and --customers, unless --on-unknown says otherwise. Popular items are under the same filters and
limits, without re-ranking; their score is their count in train, and 'is_fallback' marks them in files and in JSON.

The score is the model's: cosine, dot product, or minus the squared distance. For a softmax model, a popularity damping
of 1 ranks by how much more likely an item is for this customer than for anyone. --index damps its best items only.

Somebody who was not in training, or has listened to more since, gets a vector from a history: the one that best
explains it, with the items' vectors as they are, in milliseconds; or, in a model that trained with histories, their
mean. A --history-file has a column of items and, if there are any, of customers and weights, named as the entities and
'weight'. Items are in order of time, the newest last.

With --index, an index of 'crossfade index' is searched: some of the best items may be missing.

--out writes a row per recommendation: CUSTOMER, rank, ITEM, score, and ITEM_name if the dataset has names (columns have
the names of the dataset's entities). An interrupted command continues when it is repeated.

With --shard, OUT is a folder of Parquet files, whose rows are, in the order of their names, those of one file. --merge
verifies them and writes OUT/_manifest.json."""


class RecommendCommand(TableOptions, RecommendToOptions):
    """The options of the command."""

    show: str | None = option(
        None, "print this feature, or column of the metadata, beside the names of items", group="output", value="COLUMN"
    )

    @property
    def columns_used(self) -> set[str]:
        """Words that may name a column."""
        return super().columns_used | ({self.show} if self.show else set())

    @model_validator(mode="after")
    def _check_printing(self) -> Self:
        name = next((name for name in ("json_", "csv", "show") if getattr(self, name)), None)
        if self.out is not None and name is not None:
            problem = "is for recommendations that are printed"
            fix = ("leave out ", Option(name), " or ", Option("out"))
            raise OptionError(name, found=self.show if name == "show" else "", problem=problem, fix=fix)
        return self


def _suggest_customer(option: str, value: str) -> str:
    """Return what to type instead of an option that is named as the query entity may be, such as ``--listener``."""
    return f"use --customer {value}, whatever customers are called in the data" if value else ""


@as_command(
    "recommend",
    "Recommend items to customers: the nearest of all items, exactly, without those they know.",
    _EXAMPLES,
    _NOTES,
    suggest=_suggest_customer,
)
def run(options: RecommendCommand) -> int:
    """Recommend, and print or write the result.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        InputError: an option is invalid, a customer unknown, or the model or its dataset missing.
    """
    from crossfade.trainer.recommend.model import open_model
    from crossfade.trainer.recommend.table_files import check_output

    if not options.is_divided:
        check_output(None if options.out is None else Path(options.out), overwrite=options.overwrite)
    with closing(open_model(options, _logger.warning)) as opened:
        opened.use(lambda model: _recommend(model, options))
    return 0


def _recommend(model: Model, options: RecommendCommand) -> None:
    from crossfade.display import progress_bars
    from crossfade.trainer.recommend.bulk import recommend_to

    with progress_bars() as bars:
        found = recommend_to(model, options, bars, _logger.warning)
    if options.out is None:
        _print(model, found, options)
        return
    new = "new " if options.is_new else ""
    shard = "" if options.shard is None else f", shard {options.shard}"
    made = f"{counted(found.rows, 'recommendation')} to {found.queries:,} {new}of {model.query}"
    print_line(f"{made}: {options.out}{shard}")


def _print(model: Model, found: Recommended, options: RecommendCommand) -> None:
    from crossfade.trainer.recommend.candidates import column_values
    from crossfade.trainer.recommend.row_names import distinct_labels

    assert found.rankings is not None
    assert found.histories is not None
    rows_QK, scores_QK = (array_QK.tolist() for array_QK in found.rankings)
    favorites = [found.histories.favorites(place, found.rankings.rows_QK.shape[1]) for place in range(found.queries)]
    shown = {row for rows in (*rows_QK, *(rows_N.tolist() for rows_N in favorites)) for row in rows if row >= 0}
    labels, column = model.labels(model.item, sorted(shown)), options.show
    file, of_row = options.metadata_file, dict[int, list[str]]()
    if column is not None:
        of_row = column_values(model.trained, model.item, file, column, labels)
    texts = {row: f"{text}{_beside(of_row.get(row))}" for row, text in distinct_labels(labels).items()}
    results, lines, fallback_Q = (
        [],
        list[str](),
        [None] * found.queries if found.fallback_Q is None else found.fallback_Q.tolist(),
    )
    for label, rows_K, scores_K, favorite_N, is_fallback in zip(
        found.labels, rows_QK, scores_QK, favorites, fallback_Q, strict=True
    ):
        ranked = [(row, score) for row, score in zip(rows_K, scores_K, strict=True) if row >= 0]
        more = {row: {str(column): values} for row, values in of_row.items()}
        scored = [labels[row].as_record(model.item) | more.get(row, {}) | {"score": score} for row, score in ranked]
        history = [labels[row].as_record(model.item) | more.get(row, {}) for row in favorite_N.tolist()]
        mark = {} if is_fallback is None else {"is_fallback": is_fallback}
        results.append({model.query: label.id or None, **mark, "recommendations": scored, "history": history})
        scored_texts = [f"{score:8.3f}  {texts[row]}" for row, score in ranked]
        popular = f" (unknown or untrained: popular {model.item})" if is_fallback else ""
        known, title = [texts[row] for row in favorite_N.tolist()], f"{model.query} {label}{popular}"
        lines += _list_lines(title if label.id else f"new {model.query}", model.item, scored_texts, known)
    print_result(
        options,
        results,
        lambda: print_lines(lines),
        lambda: [{model.query: each[model.query], **item} for each in results for item in each["recommendations"]],
    )


def _beside(values: Sequence[str] | None) -> str:
    """Return what stands beside a name: at most three of its ``values``."""
    if not values:
        return ""
    return escape_unprintable(f" ({', '.join(values[:_SHOWN_VALUES])}{', …' * (len(values) > _SHOWN_VALUES)})")


def _list_lines(title: str, item: str, lines: list[str], known: list[str]) -> Iterator[str]:
    """Yield recommendations beside the items of the largest weights in the history."""
    head = f"{'score':>8}  recommended {item}"
    width = max(map(_columns, [head, *lines]))
    yield title
    yield f"{head}{' ' * (width - _columns(head))}    history, by weight"
    for line, label in zip_longest(lines, known, fillvalue=""):
        yield f"{line}{' ' * (width - _columns(line))}    {label}".rstrip()


def _columns(text: str) -> int:
    """Return how many columns of a terminal ``text`` takes: two for each East Asian wide character."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
