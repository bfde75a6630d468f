"""``crossfade recommend``: recommend items to customers, or to whatever the query entity is."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.terminal import PrintOptions, print_line, print_lines, print_result
from crossfade.trainer.recommend.options import RecommendToOptions

if TYPE_CHECKING:
    from crossfade.trainer.recommend.bulk import Recommended
    from crossfade.trainer.recommend.model import Model

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ("crossfade recommend runs/lastfm --customer 2 3", "Recommend ten artists to each of two listeners."),
    (
        "crossfade recommend runs/lastfm --customer 2 --popularity-damping 0.5 --where \"list_contains(tag, 'jazz')\"",
        "Recommend jazz, and less popular artists.",
    ),
    (
        "crossfade recommend runs/plays --all -k 20 --max-per artist=2 --out recs.parquet",
        "Write twenty tracks for every customer, at most two of an artist.",
    ),
    (
        'crossfade recommend runs/lastfm --history "Radiohead" "Björk"',
        "Recommend to somebody new, by what they like.",
    ),
)
_NOTES = """\
Items without an interaction of positive weight in train have no trained vector (unless they have features), and are
left out. Such customers, and unknown ones, are an error if --customer names them, and are left out of --all and
--customers, unless --on-unknown says otherwise. The score is the model's: cosine, dot product, or minus the squared
distance. A history of somebody new is in order of time, the newest last.

--out writes a row per recommendation: CUSTOMER, rank, ITEM, score, and ITEM_name if the dataset has names (columns have
the names of the dataset's entities).
"""


class RecommendCommand(PrintOptions, RecommendToOptions):
    """The options of the command."""

    at_most_one: ClassVar[Any] = (("out", "json_"),)


@as_command(
    "recommend",
    "Recommend items to customers: the nearest of all items, exactly, without those they know.",
    _EXAMPLES,
    _NOTES,
)
def run(options: RecommendCommand) -> int:
    """Recommend, and print or write the result.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        InputError: an option is invalid, a customer unknown, or the model or its dataset missing.
    """
    from crossfade.trainer.recommend.model import open_model
    from crossfade.trainer.recommend.table_files import check_output

    if options.engine != "spark":
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
    new = "new " if options.history else ""
    made = f"{counted(found.rows, 'recommendation')} to {found.queries:,} {new}of {model.query}"
    print_line(f"{made}: {options.out}")


def _print(model: Model, found: Recommended, options: RecommendCommand) -> None:
    from crossfade.trainer.recommend.row_names import distinct_labels

    assert found.rankings is not None
    assert found.histories is not None
    rows_QK, scores_QK = (array_QK.tolist() for array_QK in found.rankings)
    favorites = [found.histories.favorites(place, found.rankings.rows_QK.shape[1]) for place in range(found.queries)]
    shown = {row for rows in (*rows_QK, *(rows_N.tolist() for rows_N in favorites)) for row in rows if row >= 0}
    labels = model.labels(model.item, sorted(shown))
    texts = distinct_labels(labels)
    results, lines, fallback_Q = (
        [],
        list[str](),
        [None] * found.queries if found.fallback_Q is None else found.fallback_Q.tolist(),
    )
    for label, rows_K, scores_K, favorite_N, is_fallback in zip(
        found.labels, rows_QK, scores_QK, favorites, fallback_Q, strict=True
    ):
        ranked = [(row, score) for row, score in zip(rows_K, scores_K, strict=True) if row >= 0]
        scored = [labels[row].as_record(model.item) | {"score": score} for row, score in ranked]
        history = [labels[row].as_record(model.item) for row in favorite_N.tolist()]
        mark = {} if is_fallback is None else {"is_fallback": is_fallback}
        results.append({model.query: label.id or None, **mark, "recommendations": scored, "history": history})
        popular = f" (unknown or untrained: popular {model.item})" if is_fallback else ""
        lines.append(f"{model.query} {label}{popular}" if label.id else f"new {model.query}")
        lines += [f"{score:8.3f}  {texts[row]}" for row, score in ranked]
        if len(favorite_N):
            lines.append(f"  history, by weight: {', '.join(texts[row] for row in favorite_N.tolist())}")
    print_result(options, results, lambda: print_lines(lines))
