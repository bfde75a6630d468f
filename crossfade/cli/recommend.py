"""``crossfade recommend``: recommend items to customers, or to whatever the query entity is."""

from __future__ import annotations

import argparse
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.errors import escape_unprintable
from crossfade.base.text import counted
from crossfade.cli.command import CommandParser, add_command
from crossfade.cli.options.filters import NOTES as FILTER_NOTES
from crossfade.cli.options.filters import add_filter_options, read_filters
from crossfade.cli.options.history import add_history_option
from crossfade.cli.options.parsing import parse_context
from crossfade.terminal import print_json, print_line

if TYPE_CHECKING:
    from crossfade.base.arrays import IntArray
    from crossfade.trainer.recommend.recommender import Recommendations, RecommendOptions
    from crossfade.trainer.recommend.row_names import RowLabel
    from crossfade.trainer.recommend.trained_model import TrainedModel

_SHOWN_VALUES = 3
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
_NOTES = f"""\
FROM is a run folder, a folder of checkpoints or one checkpoint, each of which may be on S3. The embeddings of a run are
used if it has written any, otherwise its newest complete checkpoint. IDs and interactions come from the dataset of the
run's job, or --data if it has moved.

Items that a customer has in the dataset, whatever the weight, are left out; --exclude names other splits, or none, to
recommend them again. Items and customers without an interaction of positive weight in train have no trained vector
(unless they have features) and are left out too.

The score is the model's: cosine, dot product, or minus the squared distance. --popularity-damping A subtracts
A * T * log(1 + count), with T the model's temperature; 0 is the model's own ranking, and 1, for a softmax model, ranks
by how much more likely an item is for this customer than for anyone.

Somebody who was not in training, or has listened to more since, gets a vector from a history: the one that best
explains it, with the items' vectors as they are, in milliseconds; or, in a model that trained with histories, their
mean. A --history-file has a column of items and, if there are any, of customers and weights, named as the entities and
'weight'. Items are in order of time, the newest last.

With --index, an index of 'crossfade index' is searched: some of the best items may be missing, and the score is the
model's. Filters and exclusions hold as without it.

--out writes a row per recommendation: CUSTOMER, rank, ITEM, score, and ITEM_name if the dataset has names (columns have
the names of the dataset's entities), as Parquet, CSV, or JSON lines by the end of its name. It is resumable: an
interrupted command continues when it is repeated.

{FILTER_NOTES}"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "recommend",
        "recommend items to customers",
        "Recommend items to customers: the nearest of all items, exactly, without those they know.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    source = parser.add_argument_group("input")
    source.add_argument("source", metavar="FROM", help="read this run folder, folder of checkpoints, or checkpoint")
    source.add_argument("--data", metavar="DATA", help="read IDs and interactions here (default: data.path of the job)")
    add_history_option(source)
    _add_customers(parser)
    ranking = parser.add_argument_group("ranking")
    ranking.add_argument(
        "-k", type=int, default=10, metavar="N", help="recommend N items to each customer (default: 10)"
    )
    ranking.add_argument(
        "--exclude",
        nargs="*",
        choices=["train", "valid", "test"],
        help="leave out the items that a customer has in these splits (default: all splits)",
    )
    ranking.add_argument(
        "--popularity-damping", type=float, default=0.0, metavar="A", help="rank popular items lower (default: 0)"
    )
    ranking.add_argument(
        "--index", metavar="FOLDER", help="search this index of the items instead of ranking all items exactly"
    )
    ranking.add_argument(
        "--context",
        action="append",
        metavar="NAME=VALUE",
        help="recommend in this context, by ID or name, such as hour=18; repeatable (default: in the average of train)",
    )
    add_filter_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, metavar="FILE", help="write recommendations to this file: .parquet, .csv, or .jsonl"
    )
    output.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    output.add_argument(
        "--show", metavar="COLUMN", help="print this feature, or column of --metadata, beside the names of items"
    )
    output.add_argument("--json", action="store_true", help="print recommendations as JSON")
    parser.set_defaults(run=run)


def _add_customers(parser: CommandParser) -> None:
    parser.suggest = _suggest_customer
    customers = parser.add_argument_group("customers (one of these)").add_mutually_exclusive_group(required=True)
    customers.add_argument(
        "--customer", nargs="+", metavar="ID", help="recommend to the customers with these IDs or names"
    )
    customers.add_argument("--customers", metavar="FILE", help="recommend to the customers whose IDs are in this file")
    customers.add_argument("--all", action="store_true", help="recommend to all customers")
    customers.add_argument(
        "--history",
        nargs="+",
        metavar="ITEM",
        help="recommend to somebody who was not in training, by the IDs or names of items that they like",
    )
    customers.add_argument(
        "--history-file", metavar="FILE", help="recommend to new customers, by the interactions in this file"
    )


def _suggest_customer(option: str, value: str) -> str:
    """Return what to type instead of an option that is named as the query entity may be, such as ``--listener``."""
    return f"use --customer {value}, whatever customers are called in the data" if value else ""


def run(arguments: argparse.Namespace) -> int:
    """Recommend, and print or write the result.

    Raises:
        CheckpointError: every checkpoint is corrupt or cannot be read.
        InputError: an option is invalid, a customer unknown, or the model or its dataset missing.
    """
    from crossfade.trainer.recommend.trained_model import with_trained_model

    options = _read_options(arguments)
    with_trained_model(
        arguments.source,
        arguments.data,
        _logger.info,
        lambda model: _recommend(model, options, arguments),
        history_from_this_dataset_only=arguments.history_from_this_dataset_only,
    )
    return 0


def _read_options(arguments: argparse.Namespace) -> RecommendOptions:
    import math

    from crossfade.base.errors import InputError
    from crossfade.trainer.recommend.recommender import ALL_SPLITS, RecommendOptions
    from crossfade.trainer.recommend.table_files import check_format

    if arguments.k < 1:
        raise InputError(f"-k {arguments.k}: expected 1 or more")
    if not (math.isfinite(arguments.popularity_damping) and arguments.popularity_damping >= 0):
        raise InputError(f"--popularity-damping {arguments.popularity_damping}: expected a number of 0 or more")
    if arguments.index is not None and arguments.popularity_damping:
        raise InputError(
            f"--popularity-damping {arguments.popularity_damping}: an index does not rank by it; leave out --index"
        )
    out = arguments.out
    if out is None and (arguments.all or arguments.customers is not None):
        raise InputError("--all and --customers write a file: name it with --out FILE.parquet, .csv, or .jsonl")
    if out is not None and arguments.json:
        raise InputError("--json prints recommendations, --out writes them: leave one out")
    if out is not None and arguments.show is not None:
        raise InputError(f"--show {arguments.show}: is for recommendations that are printed; leave out --show or --out")
    if out is not None and out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file in it, such as {out / 'recs.parquet'}")
    if out is not None:
        check_format("--out", out)
    if out is not None and out.exists() and not arguments.overwrite:
        raise InputError(f"--out {out}: already exists; choose another, or replace it with --overwrite")
    if arguments.context and (arguments.history is not None or arguments.history_file is not None):
        raise InputError(
            f"--context {arguments.context[0]}: is added to trained vectors, which --history and --history-file do not "
            "use; leave it out"
        )
    exclude = ALL_SPLITS if arguments.exclude is None else tuple(dict.fromkeys(arguments.exclude))
    return RecommendOptions(
        arguments.k, exclude, arguments.popularity_damping, read_filters(arguments), arguments.index
    )


def _recommend(model: TrainedModel, options: RecommendOptions, arguments: argparse.Namespace) -> None:
    import numpy as np

    from crossfade.display import progress_bars
    from crossfade.trainer.recommend.bulk import recommend_in_bulk
    from crossfade.trainer.recommend.context import find_context
    from crossfade.trainer.recommend.recommender import Recommender
    from crossfade.trainer.recommend.row_names import RowNames

    given = parse_context(arguments.context or (), "VALUE", "hour=18")
    options = replace(options, context=find_context(model, given, _logger.warning))
    if arguments.history is not None or arguments.history_file is not None:
        _recommend_to_new(model, options, arguments)
        return
    queries_Q = _find_customers(model, arguments)
    sorted_Q = np.sort(queries_Q)
    with progress_bars() as bars:
        if arguments.out is not None:
            rows = recommend_in_bulk(model, options, sorted_Q, arguments.out, bars)
        else:
            recommended = Recommender(model, options, bars).for_rows(sorted_Q)
    if arguments.out is not None:
        print_line(
            f"{counted(rows, 'recommendation')} to {len(queries_Q):,} of {model.spec.query.name}: {arguments.out}"
        )
        return
    labels = RowNames(model.vocabulary(model.spec.query.name), model.spec.query.name).labels(sorted_Q)
    places = np.searchsorted(sorted_Q, queries_Q)
    queries = [(labels[int(row)], int(place)) for row, place in zip(queries_Q, places, strict=True)]
    _print(model, queries, recommended, options, arguments)


def _recommend_to_new(model: TrainedModel, options: RecommendOptions, arguments: argparse.Namespace) -> None:
    """Recommend to customers who were not in training, by their histories."""
    import numpy as np
    import pyarrow as pa

    from crossfade.display import progress_bars
    from crossfade.trainer.recommend.bulk import write_recommendations
    from crossfade.trainer.recommend.history import make_sequences
    from crossfade.trainer.recommend.history_file import read_histories
    from crossfade.trainer.recommend.recommender import Recommender
    from crossfade.trainer.recommend.row_names import RowLabel, RowNames

    query, item = model.spec.query.name, model.spec.item.name
    if arguments.history is not None:
        rows_N = np.array(RowNames(model.vocabulary(item), item).find(arguments.history, _logger.warning), np.int64)
        ones_N = np.ones(len(rows_N), np.float32)
        histories, ids = make_sequences(np.zeros_like(rows_N), rows_N, ones_N, 1, model.spec.item.rows), [""]
    else:
        found = read_histories(arguments.history_file, model)
        histories, ids = found.histories, found.ids
        if found.unknown:
            _logger.warning(
                f"{counted(found.unknown, 'line')} of {arguments.history_file} with no known {item}; left out"
            )
    with progress_bars() as bars:
        recommended = Recommender(model, options, bars).for_histories(histories)
    if arguments.out is not None:
        rows = write_recommendations(model, pa.array(ids), recommended, arguments.out)
        print_line(f"{counted(rows, 'recommendation')} to {len(ids):,} new of {query}: {arguments.out}")
        return
    _print(model, [(RowLabel(id, None), place) for place, id in enumerate(ids)], recommended, options, arguments)


def _find_customers(model: TrainedModel, arguments: argparse.Namespace) -> IntArray:
    """Return the rows of the customers that have a trained vector: as named or, from a file or of all, sorted."""
    import numpy as np

    from crossfade.base.errors import InputError, format_names
    from crossfade.trainer.prepare.id_list import read_ids
    from crossfade.trainer.recommend.row_names import RowNames

    entity = model.spec.query.name
    trained_R = model.trained_rows(model.spec.query)
    names = RowNames(model.vocabulary(entity), entity)
    if arguments.customer is not None:
        rows = names.find(arguments.customer, _logger.warning)
        for row, text in zip(rows, arguments.customer, strict=True):
            if not trained_R[row]:
                raise InputError(
                    f"--customer {text}: has no interaction of positive weight in train, so its vector is not trained"
                )
        return np.array(list(dict.fromkeys(rows)), np.int64)
    if arguments.all:
        everyone: IntArray = np.flatnonzero(trained_R)
        return everyone
    ids = read_ids(arguments.customers, None, entity)
    found_Q, missing = names.rows_of(ids)
    queries_Q: IntArray = found_Q[trained_R[found_Q]]
    if not len(queries_Q):
        raise InputError(f"--customers {arguments.customers}: none of its {len(ids)} IDs has a trained vector")
    if missing:
        _logger.warning(f"{len(missing):,} of {len(ids):,} customers have no row: {format_names(missing[:5])}")
    if len(found_Q) > len(queries_Q):
        left_out = counted(len(found_Q) - len(queries_Q), "customer")
        _logger.warning(f"{left_out} without an interaction of positive weight in train; left out")
    return queries_Q


def _print(
    model: TrainedModel,
    queries: list[tuple[RowLabel, int]],
    recommended: Recommendations,
    options: RecommendOptions,
    arguments: argparse.Namespace,
) -> None:
    """Print the recommendations to ``queries``, each with its label and its place in ``recommended``."""
    import numpy as np

    from crossfade.trainer.recommend.row_names import RowNames, distinct_labels

    query, item = model.spec.query.name, model.spec.item.name
    favorites = [recommended.histories.favorites(place, recommended.item_QK.shape[1]) for _, place in queries]
    shown_N = np.concatenate([recommended.item_QK.ravel(), *favorites])
    labels = RowNames(model.vocabulary(item), item).labels(shown_N[shown_N >= 0])
    column, of_row = arguments.show, _values(model, options, arguments.show, labels)
    texts = {row: f"{text}{_beside(of_row.get(row))}" for row, text in distinct_labels(labels).items()}
    results = []
    for (label, place), favorite_N in zip(queries, favorites, strict=True):
        found = [
            (int(row), float(score))
            for row, score in zip(recommended.item_QK[place], recommended.score_QK[place], strict=True)
            if row >= 0
        ]
        if arguments.json:
            more = {row: {column: values} for row, values in of_row.items()}
            scored = [_as_dict(item, labels[row]) | more.get(row, {}) | {"score": score} for row, score in found]
            history = [_as_dict(item, labels[int(row)]) | more.get(int(row), {}) for row in favorite_N]
            results.append({query: label.id or None, "recommendations": scored, "history": history})
        else:
            scored_texts = [f"{score:8.3f}  {texts[row]}" for row, score in found]
            known = [texts[int(row)] for row in favorite_N]
            _print_lists(f"{query} {label}" if label.id else f"new {query}", item, scored_texts, known)
    if arguments.json:
        print_json(results)


def _values(
    model: TrainedModel, options: RecommendOptions, column: str | None, labels: Mapping[int, RowLabel]
) -> dict[int, list[str]]:
    """Return the values that the rows of ``labels`` have in ``column``; none without a column."""
    from crossfade.trainer.recommend.metadata_table import open_metadata

    if column is None:
        return {}
    item, metadata = model.spec.item.name, options.filters.metadata
    with open_metadata(model.data, model.manifest, item, metadata, {column}, model.counts) as table:
        groups = table.groups(column)
    bounds = {row: groups.starts_R1[row : row + 2] for row in labels}
    return {row: [groups.names[value] for value in groups.values_N[slice(*bound)]] for row, bound in bounds.items()}


def _beside(values: Sequence[str] | None) -> str:
    """Return what stands beside a name: at most three of its ``values``."""
    if not values:
        return ""
    return escape_unprintable(f" ({', '.join(values[:_SHOWN_VALUES])}{', …' * (len(values) > _SHOWN_VALUES)})")


def _as_dict(entity: str, label: RowLabel) -> dict[str, int | str | float | None]:
    return {entity: label.id, **({"name": label.name} if label.name is not None else {})}


def _print_lists(title: str, item: str, lines: list[str], known: list[str]) -> None:
    """Print recommendations beside the items of the largest weights in the history."""
    head = f"{'score':>8}  recommended {item}"
    width = max(map(_columns, [head, *lines]))
    print_line(title)
    print_line(f"{head}{' ' * (width - _columns(head))}    history, by weight")
    for line, label in zip_longest(lines, known, fillvalue=""):
        print_line(f"{line}{' ' * (width - _columns(line))}    {label}".rstrip())


def _columns(text: str) -> int:
    """Return how many columns of a terminal ``text`` takes: two for each East Asian wide character."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
