"""The options of a preparation, and the checks of them that need no file.

options = PrepareOptions(train=["plays.parquet"], out="data/plays", hold_out="random:0.1")
options.check()
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from crossfade.base.errors import InputError
from crossfade.base.options import Options, option
from crossfade.trainer.data.manifest import TIMESTAMP, WEIGHT, is_entity_name
from crossfade.trainer.data.time_range import EventTimeRange
from crossfade.trainer.prepare.admission import ADMIT, EXPIRE, MaxAge
from crossfade.trainer.prepare.composite_ids import PLUS
from crossfade.trainer.prepare.content import OPTION as CONTENT_OPTION
from crossfade.trainer.prepare.context import OPTION as CONTEXT_OPTION
from crossfade.trainer.prepare.context import check_context, plan_context
from crossfade.trainer.prepare.event_values import check_event_weights
from crossfade.trainer.prepare.events import ColumnMapping, EventRules, IdChoice
from crossfade.trainer.prepare.faults import MAX_BAD
from crossfade.trainer.prepare.features import OPTION as FEATURES_OPTION
from crossfade.trainer.prepare.features import FeatureFile
from crossfade.trainer.prepare.hold_out import HoldOut, plan_hold_outs
from crossfade.trainer.prepare.input_files import Format
from crossfade.trainer.prepare.timestamp_formats import OPTION as TIMESTAMP_FORMAT
from crossfade.trainer.prepare.vocabulary_tables import NamesFile, Side


class ForgetOptions(Options):
    """Which IDs to delete from a dataset."""

    data: str = option(
        ...,
        "delete from this folder or s3://BUCKET/PREFIX, and its bases",
        group="dataset",
        value="DATA",
        positional=True,
    )
    this_dataset_only: bool = option(
        False, "leave base datasets as they are, such as where they have been deleted", group="dataset"
    )
    ids: str = option(
        ..., "read IDs from FILE: text with one per line, or a column of Parquet, CSV or TSV", group="ids", value="FILE"
    )
    column: str | None = option(
        None, "read this column (default: the entity's name, or the only one)", group="ids", value="COLUMN"
    )
    entity: str | None = option(
        None, "delete IDs of this entity (default: the querying one)", group="ids", value="NAME"
    )


Duplicates = Literal["keep", "sum"]
OnBadLine = Literal["fail", "skip"]
OnMissing = Literal["fail", "drop"]
Order = Literal["random", "grouped"]

_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What to prepare, and how.

    Attributes:
        out: The path or URI of the dataset to write.
        train: Paths, URIs or globs of the files with events of train; likewise ``valid`` and ``test``.
        format: The format of these files; None infers it from their extensions.
        delimiter: What separates the fields of CSV and TSV files; None finds it by the header of each CSV file.
        query: The name of the query entity; its IDs are in the column of that name, or in ``query_column``, which may
            join several columns (``composite_ids.py``).
        item: The name of the item entity, likewise. (``lightgcn`` files have no columns.)
        weight: The column of weights; None gives every event the weight 1. A negative weight is negative feedback;
            events of weight 0 are dropped.
        event: The column with the kind of event, whose weights are ``event_weights``.
        timestamp: The column of timestamps.
        timestamp_formats: Their formats (``timestamp_formats.py``); empty: integers, or ISO dates.
        context: By the name of each context entity of the events, the column of its values, or how they are derived
            (``context.py``).
        on_bad_line: Whether a line that cannot be read or has a value that is not allowed ends the preparation, or is
            left out.
        quarantine: The file that receives the bad lines that are left out.
        on_missing: Whether a row without an ID, weight, event, or timestamp ends the preparation, or is left out.
        max_bad: The largest share of rows that may be left out by these two, from 0 to 1.
        first_row: The number of the first row of Parquet files in messages.
        since: Events before this time are dropped, as are those at or after ``until``.
        duplicates: 'sum' merges the interactions of a (query, item) pair, 'keep' keeps all.
        min_count: The interactions that an ID of an entity needs to be kept (``cleaning.py``).
        admit: The events that an ID of an entity needs, over all datasets of the lineage, to get a row
            (``admission.py``).
        expire_after: How long an ID of an entity may be unseen before it loses its row (``admission.py``).
        id_type: 'auto' reads IDs of a text file as integers if all of them are, 'string' reads all IDs as text.
        hold_out: The hold-out for test and valid (``hold_out.py``); ``hold_out_valid`` and ``hold_out_test`` for one.
            Valid is held out by default, unless ``hold_out_valid`` is 'none' or valid or test has files.
        names: The file with names of IDs, by entity.
        features: The files with features of IDs (``features.py``).
        content: The files with content of IDs (``content.py``).
        catalog: The entities of which IDs that have a feature or content but no event get rows too.
        base: The path or URI of the base dataset, whose IDs keep their rows (``extend.py``).
        order: The order of interactions: 'grouped', all of a query entity together, or 'random'.
        seed: Determines the order of interactions and random hold-outs.
        overwrite: Whether to replace a prepared dataset in ``out``.
        work_dir: Where temporary files go (``staging.py``).
        memory_bytes: The memory of DuckDB; by default half of the machine's, at most 4 GiB.
        threads: The threads of DuckDB; by default one per core.
    """

    out: str | Path
    train: Sequence[str | Path]
    valid: Sequence[str | Path] = ()
    test: Sequence[str | Path] = ()
    format: Format | None = None
    delimiter: str | None = None
    query: str = "customer"
    item: str = "item"
    query_column: str | None = None
    item_column: str | None = None
    weight: str | None = None
    event: str | None = None
    event_weights: Mapping[str, float] = field(default_factory=dict)
    timestamp: str | None = None
    timestamp_formats: Sequence[str] = ()
    context: Mapping[str, str] = field(default_factory=dict)
    on_bad_line: OnBadLine = "fail"
    quarantine: Path | None = None
    on_missing: OnMissing = "fail"
    max_bad: float = MAX_BAD
    first_row: int = 1
    since: str | None = None
    until: str | None = None
    duplicates: Duplicates = "keep"
    min_count: Mapping[str, int] = field(default_factory=dict)
    admit: Mapping[str, int] = field(default_factory=dict)
    expire_after: Mapping[str, MaxAge] = field(default_factory=dict)
    id_type: IdChoice = "auto"
    hold_out: str | None = None
    hold_out_valid: str | None = None
    hold_out_test: str | None = None
    names: Mapping[str, NamesFile] = field(default_factory=dict)
    features: Sequence[FeatureFile] = ()
    content: Sequence[FeatureFile] = ()
    catalog: Sequence[str] = ()
    base: str | None = None
    order: Order = "grouped"
    seed: int = 0
    overwrite: bool = False
    work_dir: Path | None = None
    memory_bytes: int | None = None
    threads: int | None = None

    def sides(self) -> dict[str, Side]:
        """Return the side of each of the two entities."""
        return {self.query: "query", self.item: "item"}

    def columns(self) -> ColumnMapping:
        """Return the columns to read."""
        return ColumnMapping(
            query=self.query_column or self.query,
            item=self.item_column or self.item,
            weight=self.weight,
            event=self.event,
            event_weights=self.event_weights,
            timestamp=self.timestamp,
            context={plan.key: plan.source for plan in plan_context(self.context) if not plan.is_derived},
        )

    def event_rules(self, string_id_sides: Collection[str]) -> EventRules:
        """Return how to read the events; the IDs of ``string_id_sides`` stay strings in files without types.

        Raises:
            InputError: the time range is invalid.
        """
        return EventRules(
            columns=self.columns(),
            id_type=self.id_type,
            string_id_sides=string_id_sides,
            time_range=self.time_range(),
            timestamp_formats=self.timestamp_formats,
            delimiter=self.delimiter,
        )

    def joined_columns(self) -> list[str]:
        """Return the entities whose IDs join several columns, as ``ENTITY=COLUMN+COLUMN``."""
        columns = {self.query: self.query_column, self.item: self.item_column}
        return [f"{entity}={column}" for entity, column in columns.items() if column and PLUS in column]

    def time_range(self) -> EventTimeRange:
        """Return the time range of the events to keep.

        Raises:
            InputError: it is empty, a time is invalid, or there is no timestamp.
        """
        return EventTimeRange.parse(self.since, self.until, self.timestamp is not None)

    def plan_hold_outs(self, given: set[str]) -> dict[str, HoldOut]:
        """Return the hold-out of each split, in the order to apply them; ``given`` are the splits with files.

        Raises:
            InputError: a hold-out has an unknown form, lacks a timestamp, or conflicts with another one or a file.
        """
        return plan_hold_outs(self.hold_out, self.hold_out_valid, self.hold_out_test, given, self.timestamp is not None)

    def check(self) -> None:
        """Check everything that can be checked without reading a file.

        Raises:
            InputError: an option has a wrong value, or conflicts with another one.
        """
        check_entities(self.query, self.item)
        if not self.train:
            raise InputError("no events: name files with --train")
        self._check_weights()
        self._check_reading()
        self._check_named_entities()
        self._check_admission()
        if not 0 <= self.seed <= _MAX_SEED:
            raise InputError(f"--seed {self.seed}: expected an integer from 0 to {_MAX_SEED}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads {self.threads}: expected at least 1")
        self.time_range()
        self.plan_hold_outs({split for split in ("valid", "test") if getattr(self, split)})

    def _check_weights(self) -> None:
        check_event_weights(self.event_weights)
        if self.weight is not None and self.event is not None:
            raise InputError("--weight and --event: the weight comes from one of the two; leave out the other")
        if (self.event is None) != (not self.event_weights):
            raise InputError(
                "--event and --event-weights belong together: --event COLUMN --event-weights play=1,like=3,skip=-1"
            )

    def _check_reading(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise InputError(
                f"--delimiter '{self.delimiter}': expected one character other than a quote, or \\t for a tab"
            )
        if self.timestamp_formats and self.timestamp is None:
            raise InputError(f"{TIMESTAMP_FORMAT}: describes the column of times; name it with --timestamp")
        if self.quarantine is not None and self.on_bad_line != "skip":
            raise InputError("quarantine: keeps the bad lines that are left out; set on_bad_line to skip")

    def _check_named_entities(self) -> None:
        """Check that the options that name an entity name an existing one."""
        for word, files in ((FEATURES_OPTION, self.features), (CONTENT_OPTION, self.content)):
            for name in (name for file in files for name in file.columns):
                check_entity(word, name)
        for entity in self.catalog:
            if entity not in {file.entity for file in (*self.features, *self.content)}:
                raise InputError(
                    f"--catalog {entity}: adds the ids in the files of --features {entity}=… or --content {entity}=…, "
                    "which are missing; add one"
                )
        for name in self.context:
            check_entity(CONTEXT_OPTION, name)
        sides = [self.query, self.item]
        taken = [*sides, *(name for file in self.features for name in file.columns)]
        check_context(plan_context(self.context), set(taken), self.timestamp is not None, self.duplicates)
        nameable = [*taken, *self.context]
        for word, given, existing in (
            ("--names", self.names, nameable),
            ("--min-count", self.min_count, sides),
            (ADMIT, self.admit, sides),
            (EXPIRE, self.expire_after, sides),
        ):
            unknown = sorted(set(given) - set(existing))
            if unknown:
                expected = " or ".join(f"'{entity}'" for entity in existing)
                raise InputError(f"{word} {unknown[0]}=…: no such entity; expected {expected}")

    def _check_admission(self) -> None:
        for word, minimums in (("--min-count", self.min_count), (ADMIT, self.admit)):
            for entity, minimum in minimums.items():
                if minimum < 1:
                    raise InputError(f"{word} {entity}={minimum}: expected at least 1")
        for entity, minimum in self.admit.items():
            if entity in self.catalog:
                raise InputError(
                    f"{ADMIT} {entity}={minimum}: --catalog {entity} gives rows to ids without any event; leave out "
                    "one of the two"
                )
        for max_age in self.expire_after.values():
            if self.timestamp is None:
                raise InputError(
                    f"{EXPIRE} {max_age.text}: requires the time of each event; name its column with --timestamp"
                )


def check_entities(query: str, item: str) -> None:
    """Check that ``query`` and ``item`` can be names of the entities of a dataset.

    Raises:
        InputError: one cannot, or both are the same.
    """
    for word, name in (("--query", query), ("--item", item)):
        check_entity(word, name)
    if query.lower() == item.lower():
        raise InputError(f"--query {query} --item {item}: the two entities need different names (--item NAME=COLUMN)")


def check_entity(word: str, name: str) -> None:
    """Check that ``name``, given with ``word``, can be the name of a folder and of a column of a dataset.

    Raises:
        InputError: it cannot.
    """
    if not is_entity_name(name):
        raise InputError(
            f"{word} {name}: cannot be the name of an entity; expected a word of at most 100 ASCII letters, digits, "
            f"'_' and '-', other than '{WEIGHT}' and '{TIMESTAMP}' (if the column has another name: "
            f"{word} NAME=COLUMN)"
        )
