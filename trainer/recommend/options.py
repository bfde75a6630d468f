"""Options of the verbs that use a trained model: where it is, which rows may be listed, and how they are ranked.

    RecommendOptions.of(k=5, where="year > 1990", metadata="songs.csv", max_per="artist=2")

These are the declarations; ``crossfade/base/options.py`` states what is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from crossfade.base.errors import Option, OptionError
from crossfade.base.options import Integer, Number, Options, option
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.split_names import ALL_SPLITS, SplitName
from crossfade.trainer.runs.options import Location, ModelSource

OnUnknown = Literal["error", "skip", "popular"]
"""What a query without a trained vector, such as an unknown customer, gets."""


def _limit(value: Any) -> Any:
    """Return a limit per group from ``artist=2`` or from a pair."""
    pair = value.rpartition("=")[::2] if isinstance(value, str) else value
    column, number = pair if isinstance(pair, Sequence) and len(pair) == 2 else ("", "")
    if not isinstance(column, str) or not column or not str(number).isdecimal() or int(number) < 1:
        raise ValueError("expected COLUMN=N with N of 1 or more, such as artist=2")
    return column, int(number)


def _distinct(splits: tuple[SplitName, ...]) -> tuple[SplitName, ...]:
    """Return ``splits`` in one order, each once, so that equal requests are equal."""
    return tuple(split for split in ALL_SPLITS if split in splits)


def _pair(value: Any) -> Any:
    """Return a context entity and its value from text such as ``hour=18``, or from a pair."""
    pair = value.partition("=")[::2] if isinstance(value, str) else value
    name, given = pair if isinstance(pair, Sequence) and len(pair) == 2 else ("", "")
    if not name or given == "":
        raise ValueError("expected NAME=VALUE, as in hour=18")
    return str(name), str(given)


def _id(value: Any) -> Any:
    # numpy's integers are Integral, and not int.
    return str(value) if not isinstance(value, bool) and isinstance(value, Integral) else value


Id = Annotated[str, BeforeValidator(_id)]
"""An ID as text, the form in which IDs are compared."""


_CUSTOMERS = "customers (one of these)"


class MetadataOptions(Options):
    """A file with further columns about rows."""

    metadata: Location | None = option(
        None, "use the columns of this Parquet, CSV or TSV file in conditions and groups", group="filters", value="FILE"
    )


class FilterOptions(MetadataOptions):
    """Which rows may be listed."""

    where: str | None = option(
        None, "keep only rows that meet this SQL condition", group="filters", value="CONDITION", min_length=1
    )
    allow: tuple[Id, ...] = option((), "keep only these IDs; empty: all", group="filters", value="ID")
    deny: tuple[Id, ...] = option((), "leave out these IDs", group="filters", value="ID")

    @property
    def group_limit(self) -> tuple[str, int] | None:
        """The column of which a list has few rows with the same value, and how many; None: no limit."""
        return None


class ListFiles(FilterOptions):
    """Filters of the command line, whose lists of IDs are in files (``candidates.py``: ``read_lists``)."""

    group_notes: ClassVar[Mapping[str, str]] = {
        "filters": "CONDITION is an SQL expression of DuckDB, such as count >= 100, list_contains(tag, 'jazz'), or\n"
        "genre = 'jazz' AND year > 1990. Its columns are id, name and count (interactions of positive\n"
        "weight in train), each feature of the dataset, as a list of its values, and those of the\n"
        "metadata file, which may have several lines for an ID; one of them must meet the condition.\n"
        "Lists of IDs have one per line or, as Parquet, CSV or TSV, a column named as the entity."
    }

    allow: tuple[Id, ...] = option((), "keep only the IDs in these files", group="filters", value="FILE")
    deny: tuple[Id, ...] = option((), "leave out the IDs in these files", group="filters", value="FILE")


class RankingOptions(FilterOptions):
    """How to rank rows, of those that filters keep."""

    max_per: Annotated[tuple[str, int], BeforeValidator(_limit)] | None = option(
        None, "list at most this many rows with the same value of a column", group="filters", value="COLUMN=N"
    )
    k: Integer = option(10, "list N rows for each query", group="ranking", value="N", short="k", ge=1)
    index: Location | None = option(
        None, "search this index instead of ranking all rows exactly", group="ranking", value="FOLDER"
    )

    @property
    def group_limit(self) -> tuple[str, int] | None:
        """See ``FilterOptions``."""
        return self.max_per

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if self.metadata is not None and self.where is None and self.max_per is None:
            which = (Option("where"), " or ", Option("max_per"), ", which name its columns")
            problem = ("has no effect without ", *which)
            raise OptionError("metadata", found=self.metadata, problem=problem, fix="leave it out")
        return self


class SimilarOptions(RankingOptions):
    """How to list the nearest neighbors of rows, by cosine."""

    entity: str | None = option(
        None, "search this table (default: the item entity)", group="ranking", value="NAME", min_length=1
    )


class RerankingOptions(Options):
    """How lists differ from the best by the model's score alone (``reranking.py`` has the formulas)."""

    group_notes: ClassVar[Mapping[str, str]] = {
        "re-ranking": "With T the model's temperature, an item's score is s - A * T * log(1 + count). Of the best\n"
        "10 * N items (at least 100, and at most 1,000 or N), each place takes the one with the largest\n"
        "(1 - D) * score / T - D * cosine with the most similar item listed already. Scores that are shown\n"
        "leave out D."
    }

    popularity_damping: Number = option(
        0.0, "rank popular items lower; 0 is the model's own ranking", group="re-ranking", value="A", ge=0
    )
    diversity: Number = option(
        0.0,
        "list items that are less alike; 0 is the model's own ranking, and 1 ignores scores",
        group="re-ranking",
        value="D",
        ge=0,
        le=1,
    )

    @property
    def is_reranked(self) -> bool:
        """Whether lists differ from the model's own."""
        return self.popularity_damping > 0 or self.chooses

    @property
    def chooses(self) -> bool:
        """Whether lists are chosen from more items than they show."""
        return self.diversity > 0

    def depth(self, count: int) -> int:
        """Return the number of the best items that a list of ``count`` is chosen from."""
        low, factor, high = _CANDIDATES
        return max(count, min(max(factor * count, low), high)) if self.chooses else count


_CANDIDATES = 100, 10, 1000
"""Candidates of a list: at least, for each item that it shows, and at most, unless it shows more."""


class RecommendOptions(RerankingOptions, RankingOptions):
    """How to recommend items to queries, such as customers."""

    exclude: Annotated[tuple[SplitName, ...], AfterValidator(_distinct)] = option(
        ALL_SPLITS,
        "leave out the items that a query has in these splits, whatever the weight, and with any, those it has in base "
        "datasets (default: all splits)",
        group="ranking",
        optional_values=True,
    )
    context: Annotated[
        tuple[Annotated[tuple[str, str], BeforeValidator(_pair)], ...],
        BeforeValidator(lambda given: tuple(given.items()) if isinstance(given, Mapping) else given),
    ] = option(
        (),
        "recommend in this context, by ID or name, such as hour=18; repeatable (default: in the average of train)",
        group="ranking",
        value="NAME=VALUE",
        repeat=True,
    )
    on_unknown: OnUnknown = option(
        "error",
        "reject a query that is unknown or has no trained vector (error), leave it out (skip), or recommend the items "
        "with the most interactions in train to it (popular)",
        group="ranking",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(dict(self.context)) < len(self.context):
            raise OptionError("context", problem="expected each name once")
        if self.index is not None and self.popularity_damping:
            problem = ("ranks without ", Option("popularity_damping"))
            raise OptionError("index", found=self.index, problem=problem, fix="leave one of them out")
        return self

    @property
    def of_popular(self) -> RankingOptions:
        """The options of a list that is ranked by popularity: the filters and the length, without re-ranking."""
        values = {name: getattr(self, name) for name in RankingOptions.model_fields if name != "index"}
        return RankingOptions.model_construct(**values)

    def check_for_histories(self) -> None:
        """Check that nothing is asked for that only queries with an ID have.

        Raises:
            OptionError: there is a context, or something else than an error for unknown queries.
        """
        if self.on_unknown != "error":
            problem = "is for customers by ID, and a history has none"
            raise OptionError("on_unknown", found=self.on_unknown, problem=problem, fix="leave it out")
        if self.context:
            problem = "is added to trained vectors, which histories do not have"
            raise OptionError("context", found="=".join(self.context[0]), problem=problem, fix="leave it out")


class RecommendToOptions(ListFiles, RecommendOptions, ModelSource):
    """Whom to recommend to, and the file for recommendations."""

    one_of = (("customer", "customers", "all", "history"),)

    customer: tuple[str, ...] = option(
        (), "recommend to the customers with these IDs or names", group=_CUSTOMERS, value="ID"
    )
    customers: Location | None = option(
        None, "recommend to the customers whose IDs are in this file", group=_CUSTOMERS, value="FILE"
    )
    all: bool = option(False, "recommend to all customers", group=_CUSTOMERS)
    history: tuple[str, ...] = option(
        (),
        "recommend to somebody who was not in training, by the IDs or names of items that they like",
        group=_CUSTOMERS,
        value="ITEM",
    )
    out: Location | None = option(
        None,
        "write recommendations to this file: .parquet, .csv, or .jsonl; Spark, to a folder of Parquet files",
        group="output",
        value="OUT",
    )
    overwrite: bool = option(False, "replace the file or folder", group="output")
    engine: Literal["process", "spark"] = option(
        "process", "rank in this process (default) or, for all customers, in tasks of Spark", group="output"
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_of_file(cls, values: Any) -> Any:
        """Leave unknown customers out of a file of many, unless something else is asked for."""
        return {"on_unknown": "skip", **values} if values.get("customers") is not None else values

    @model_validator(mode="after")
    def _check_out(self) -> Self:
        if self.engine == "spark" and not self.all:
            raise OptionError("engine", found="spark", problem="ranks for many", expected=Option("all"))
        if self.out is not None and "://" in self.out and self.engine != "spark":
            raise OptionError("out", found=self.out, expected=("a local path, or ", Option("engine", "spark")))
        if self.out is None and (self.all or self.customers is not None):
            name = "all" if self.all else "customers"
            file = Option("out", "FILE.parquet, .csv, or .jsonl")
            raise OptionError(name, problem="writes a file", fix=("name it with ", file))
        if self.history:
            self.check_for_histories()
        return self


class IndexOptions(Options):
    """Which vectors of a model to index, and how."""

    entity: str | None = option(
        None, "index this table (default: the item entity of the run's job)", group="index", value="NAME"
    )
    metric: ScoreKind | None = option(
        None,
        "search by this score (default: the metric of recommendations; for other entities, model.score)",
        group="index",
    )
    recall: Number = option(
        0.95,
        "scan as many lists as a recall@100 of R needs, measured by 1,000 queries",
        group="index",
        value="R",
        gt=0,
        le=1,
    )
    out: Location = option(..., "write to this folder", group="output", value="FOLDER")
    overwrite: bool = option(False, "replace the index in the folder", group="output")

    @model_validator(mode="after")
    def _check_out(self) -> Self:
        if "://" in self.out:
            raise OptionError("out", found=self.out, expected="a local path")
        return self
