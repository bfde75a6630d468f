"""Options of the verbs that use a trained model: where it is, which rows may be listed, and how they are ranked.

    RecommendOptions.of(k=5, where="year > 1990", metadata="songs.csv", max_per="artist=2")

These are the declarations; ``crossfade/base/options.py`` states what is made of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, model_validator

from crossfade.base.errors import OptionError, option_named
from crossfade.base.options import Integer, Number, Options, option
from crossfade.trainer.data.splits import ALL_SPLITS, SplitName


@dataclass(frozen=True)
class MetadataFile:
    """A Parquet, CSV or TSV file with lines about IDs.

    Attributes:
        location: path or URI.
        id_column: its column of IDs; None: the one named as the entity, ``ENTITY_id``, or ``id``.
    """

    location: str
    id_column: str | None = None


def _limit(value: Any) -> Any:
    """Return a limit per group from ``artist=2`` or from a pair."""
    pair = value.rpartition("=")[::2] if isinstance(value, str) else value
    column, number = pair if isinstance(pair, Sequence) and len(pair) == 2 else ("", "")
    if not isinstance(column, str) or not column or not str(number).isdecimal() or int(number) < 1:
        raise ValueError("expected COLUMN=N with N of 1 or more, such as artist=2")
    return column, int(number)


class ModelSource(Options):
    """Where a trained model and its dataset are."""

    source: str = option(
        ..., "read this run folder, folder of checkpoints, or checkpoint", group="model", value="FROM", positional=True
    )
    data: str | None = option(
        None, "read IDs and interactions here (default: data.path of the job)", group="model", value="DATA"
    )
    history_from_this_dataset_only: bool = option(
        False,
        "read no base datasets of the dataset, such as where they cannot be reached: what is known from them counts as "
        "new",
        group="model",
    )


class FilterOptions(Options):
    """Which rows may be listed."""

    where: str | None = option(
        None, "keep only rows that meet this SQL condition", group="filters", value="CONDITION", min_length=1
    )
    metadata: str | None = option(
        None, "use the columns of this Parquet, CSV or TSV file in conditions and groups", group="filters", value="FILE"
    )
    metadata_id: str | None = option(
        None,
        "take IDs from this column of the metadata (default: the one named as the entity, ENTITY_id, or id)",
        group="filters",
        value="COLUMN",
    )
    allow: tuple[str, ...] = option((), "keep only the IDs in these files", group="filters", value="FILE")
    deny: tuple[str, ...] = option((), "leave out the IDs in these files", group="filters", value="FILE")
    max_per: Annotated[tuple[str, int], BeforeValidator(_limit)] | None = option(
        None, "list at most N rows with the same value, such as artist=2", group="filters", value="COLUMN=N"
    )

    @model_validator(mode="after")
    def _check_metadata(self) -> Self:
        if self.metadata_id is not None and self.metadata is None:
            raise OptionError(
                "metadata_id",
                found=self.metadata_id,
                problem="is a column of a file",
                fix=f"name the file with {option_named('metadata')}",
            )
        return self

    @property
    def metadata_file(self) -> MetadataFile | None:
        """The file with further columns; None: only those of the dataset."""
        return None if self.metadata is None else MetadataFile(self.metadata, self.metadata_id)

    @property
    def columns_used(self) -> set[str]:
        """Words that may name a column."""
        words = set(re.findall(r"\w+", self.where or ""))
        return words | {self.max_per[0]} if self.max_per else words


class SimilarOptions(FilterOptions):
    """How to list the nearest neighbors of rows."""

    k: Integer = option(10, "list N neighbors of each row", group="ranking", value="N", short="k", ge=1)
    entity: str | None = option(
        None, "search this table (default: the item entity)", group="ranking", value="NAME", min_length=1
    )
    index: str | None = option(
        None, "search this index, by cosine, instead of all rows exactly", group="ranking", value="FOLDER"
    )


class RecommendOptions(FilterOptions):
    """How to recommend items to queries, such as customers."""

    k: Integer = option(10, "recommend N items to each query", group="ranking", value="N", short="k", ge=1)
    exclude: tuple[SplitName, ...] = option(
        ALL_SPLITS,
        "leave out the items that a query has in these splits, whatever the weight, and with any, those it has in base "
        "datasets (default: all splits)",
        group="ranking",
        optional_values=True,
    )
    popularity_damping: Number = option(
        0.0, "rank popular items lower; 0 is the model's own ranking", group="ranking", value="A", ge=0
    )
    index: str | None = option(
        None, "search this index of the items instead of ranking all items exactly", group="ranking", value="FOLDER"
    )
    context: tuple[str, ...] = option(
        (),
        "recommend in this context, by ID or name, such as hour=18; repeatable (default: in the average of train)",
        group="ranking",
        value="NAME=VALUE",
        repeat=True,
    )

    @model_validator(mode="after")
    def _check_index(self) -> Self:
        if self.index is not None and self.popularity_damping:
            raise OptionError(
                "popularity_damping",
                found=self.popularity_damping,
                problem="an index does not rank by it",
                fix=f"leave out {option_named('index')}",
            )
        return self
