"""The options of the commands that write, change, and check datasets, and the checks of them that need no file.

options = PrepareOptions.of(train=["plays.parquet"], out="data/plays", query="customer=user_id", min_count="track=5")
options.query.name, options.query.column                # customer, user_id
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from crossfade.base.errors import Option, OptionError
from crossfade.base.options import Integer, Number, Options, Share, alternatives, option
from crossfade.trainer.data.column_names import TIMESTAMP, WEIGHT, is_entity_name
from crossfade.trainer.data.time_values import TimeSpan
from crossfade.trainer.prepare.option_values import (
    ALL,
    Context,
    ContextPlan,
    Delimiter,
    Encoding,
    Entity,
    EntityColumn,
    Features,
    Location,
    Minimums,
    Names,
    ReplayShare,
    Span,
    Spans,
    Weights,
)

Format = Literal["parquet", "csv", "tsv", "jsonl", "lightgcn"]
IdChoice = Literal["auto", "integer", "string"]
Side = Literal["query", "item"]

MAX_BAD = 0.1
"""The share of rows that may be left out by default: beyond it, an option names the wrong column or format."""
_MAX_SEED = 2**63 - 1

_dataset = partial(option, group="dataset")
_ids = partial(option, group="ids")
_output = partial(option, group="output")
_input = partial(option, group="input")
_columns = partial(option, group="columns")
_attributes = partial(option, group="features and names")
_faults = partial(option, group="faults")
_cleaning = partial(option, group="cleaning")
_base = partial(option, group="base dataset, admission and expiry")
_hold_outs = partial(option, group="hold-outs")
_resources = partial(option, group="resources")
_size = partial(option, group="size")
_content = partial(option, group="content")


def _memory() -> Any:
    return _resources(
        None, "limit memory (default: half of the machine's or of its container's limit)", value="GIB", gt=0
    )


def memory_bytes(gib: float | None) -> int | None:
    """Convert a limit of memory from GiB to bytes; None stays None."""
    return None if gib is None else int(gib * 2**30)


class ForgetOptions(Options):
    """Which IDs to delete from a dataset."""

    data: str = _dataset(..., "delete from this folder or s3://BUCKET/PREFIX", value="DATA", positional=True)
    ids: str = _ids(..., "read IDs from FILE: text with one per line, or a column of Parquet, CSV or TSV", value="FILE")
    column: str | None = _ids(None, "read this column (default: the entity's name, or the only one)", value="COLUMN")
    entity: str | None = _ids(None, "delete IDs of this entity (default: the querying one)", value="NAME")


class ValidateOptions(Options):
    """Which dataset to validate."""

    data: Location = _dataset(..., "check this folder or s3://BUCKET/PREFIX", value="DATA", positional=True)
    memory: Number | None = _memory()


class PrepareOptions(Options):
    """What to prepare, and how."""

    group_notes: ClassVar = {
        "input": "Paths, s3:// addresses, or patterns (* ? [] **); each option accepts several. Delimiter and encoding "
        "are of events.",
        "columns": "A value in a struct or a JSON object is a column by its path, such as user.id.",
        "faults": "All faults of all files are listed in one pass.",
        "cleaning": "Applied before the hold-outs. The summary counts what was dropped.",
        "hold-outs": "HOW is last-N (the last N of each query entity, by timestamp), random:FRACTION (of the pairs) or "
        "after:TIME\n(an integer or an ISO date). Every query entity keeps one interaction in train, or is left out of "
        "what is held out\nwith a gap.",
    }
    one_of = (("train", "sample"),)

    out: Location = _output(..., "write to this folder or s3://BUCKET/PREFIX; it must not exist", value="DIR")
    overwrite: bool = _output(False, "replace DIR if it holds a prepared dataset")
    skip_existing: bool = _output(False, "do nothing if DIR is a complete sample that was made by the same command")
    seed: Integer = _output(0, "seed row order and hold-outs (default: 0)", value="N", ge=0, le=_MAX_SEED)

    train: tuple[Location, ...] = _input((), "read training events", value="FILE", also="events")
    valid: tuple[Location, ...] = _input((), "read events that select the epoch", value="FILE")
    test: tuple[Location, ...] = _input((), "read events for the evaluation", value="FILE")
    format: Format | None = _input(None, "set the format of all files (default: by file extension)")
    delimiter: Delimiter = _input(
        None,
        "set what separates the fields of CSV and TSV files, \\t for a tab (default: of CSV files, the one of , ; tab "
        "| that gives the header all columns)",
        value="CHARACTER",
    )
    encoding: Encoding = _input(
        "utf-8", "set the encoding of text, such as latin-1, cp1252, or utf-16 (default: utf-8)", value="ENCODING"
    )
    sample: Literal["lastfm"] | None = _input(
        None, "prepare Last.fm HetRec 2011 (1,892 customers, 17,632 artists) instead"
    )

    query: Entity = _columns(
        EntityColumn("customer"),
        "name the querying entity, and the column of its IDs if that differs (default: customer)",
        value="NAME[=COLUMN]",
    )
    item: Entity = _columns(
        EntityColumn("item"),
        "name the item entity, and the column of its IDs, likewise (default: item)",
        value="NAME[=COLUMN]",
    )
    weight: str | None = _columns(None, "read event weights (default: 1; weight 0 drops the event)", value="COLUMN")
    decimal: Literal[".", ","] = _columns(".", "read weights in text with this decimal separator (default: .)")
    event: str | None = _columns(None, "read event types, which event weights map to weights", value="COLUMN")
    event_weights: Weights = _columns(
        {},
        "weight every event type, as in play=1,like=3,skip=-1: below 0 is negative feedback, 0 drops the event",
        value="EVENT=W,…",
    )
    timestamp: str | None = _columns(
        None, "read times: integers (kept), timestamps, dates or ISO text (seconds since 1970)", value="COLUMN"
    )
    timestamp_format: tuple[str, ...] = _columns(
        (),
        "read times in these formats, each in the first that fits: iso, epoch-s, epoch-ms, epoch-us, epoch-ns (of "
        "several units, by the size of the number), or one of strptime, such as '%d/%m/%Y %H:%M'",
        value="FORMAT",
    )
    context: Context = _columns(
        {},
        "read the context of each event, such as device=device_type, as an entity for model.query_features; or derive "
        "it: NAME=timestamp:hour (0 to 23, UTC), timestamp:weekday (1 is Monday), timestamp:previous (the item of the "
        "event before); repeatable",
        value="NAME=COLUMN",
        repeat=True,
    )
    id_type: IdChoice = _columns(
        "auto", "set the type of IDs in text files; auto (default): integer if all IDs are integers"
    )

    features: Features = _attributes(
        (),
        "read features of IDs, such as a track's artist and tags, from Parquet, CSV or TSV: each column becomes an "
        "entity for model.query_features and model.item_features; repeatable",
        value="ENTITY=FILE:ID_COLUMN:[NAME=]COLUMN,…",
        repeat=True,
    )
    content: Features = _attributes(
        (),
        "read numbers or vectors of IDs, such as a track's tempo and an embedding of its audio, from such files, for "
        "model.query_content and model.item_content; repeatable",
        value="ENTITY=FILE:ID_COLUMN:[NAME=]COLUMN,…",
        repeat=True,
    )
    catalog: tuple[str, ...] = _attributes(
        (),
        "give rows to all IDs of ENTITY in its files of features and content, also to those without events (new "
        "tracks)",
        value="ENTITY",
        repeat=True,
    )
    names: Names = _attributes(
        {},
        "read names of IDs from a Parquet, CSV or TSV file; repeatable, once for each entity and feature",
        value="ENTITY=FILE:ID_COLUMN:NAME_COLUMN",
        repeat=True,
    )

    on_bad_line: Literal["fail", "skip"] = _faults(
        "fail", "fail (default) if a line cannot be read, lacks a value, or has one that is not allowed, or skip it"
    )
    max_bad: Share = _faults(
        MAX_BAD,
        "fail if this would leave out more than this share of all rows: 0.1 or 10% (default), at most 100%",
        value="SHARE",
    )

    duplicates: Literal["keep", "sum"] = _cleaning(
        "keep",
        "keep repeated events of a pair as interactions (default), or sum them into one with the latest timestamp, on "
        "each side of a hold-out by time; sums of 0 are dropped",
    )
    min_count: Minimums = _cleaning(
        {},
        "drop IDs with fewer than K interactions of positive weight, until all have K (k-core filter); repeatable",
        value="ENTITY=K",
        repeat=True,
    )

    base: Location | None = _base(
        None,
        "extend an earlier dataset, a folder or s3://: its IDs keep their rows and features, new IDs follow",
        value="DATA",
    )
    replay: ReplayShare | None = _base(
        None,
        "also train on interactions that are drawn from the train splits of DATA and its bases, SHARE times as many as "
        "this dataset has, first those of the queries that it has: 0.5 or 50%, at most 100; against forgetting in runs "
        "that warm-start",
        value="SHARE",
    )
    admit: Minimums = _base(
        {},
        "give a new ID a row once it has K interactions of positive weight in this dataset and its bases together; "
        "until then drop its events and count it in OUT/pending",
        value="ENTITY=K,…",
        repeat=True,
    )
    expire_after: Spans = _base(
        {},
        "vacate the row of an ID without events whose last one is more than SPAN older than the newest event; new IDs "
        "reuse vacant rows before the table grows: 90d, 36h, or an integer in the unit of the timestamps",
        value="[ENTITY=]SPAN,…",
    )

    hold_out: str | None = _hold_outs(None, "hold out test, then again valid (after:TIME: test only)", value="HOW")
    hold_out_valid: str | None = _hold_outs(
        None,
        "hold out valid; none: leave train as it is; default, also without this option unless valid or test has files: "
        "random:0.05, at most about 100,000 pairs",
        value="HOW",
    )
    hold_out_test: str | None = _hold_outs(None, "hold out test", value="HOW")
    hold_out_gap: Span | None = _hold_outs(
        None,
        "drop the events of this time before each after:TIME, and what is held out of query entities without an "
        "earlier event: 1d, 2h, or an integer in the unit of the timestamps",
        value="SPAN",
    )

    engine: Literal["duckdb", "spark"] = _resources("duckdb", "prepare in this process (default), or on Spark")
    work_dir: Path | None = _resources(
        None, "keep temporary files here (default: next to a local output folder, else TMPDIR)", value="DIR"
    )
    memory: Number | None = _memory()
    threads: Integer | None = _resources(None, "limit threads (default: one per core)", value="N", ge=1)

    def sides(self) -> dict[str, Side]:
        """Return the side of each of the two entities."""
        return {self.query.name: "query", self.item.name: "item"}

    def max_ages(self) -> dict[str, TimeSpan]:
        """Return how long an ID of an entity may be unseen."""
        ages = dict(self.expire_after)
        for_all = ages.pop(ALL, None)
        return ages if for_all is None else dict.fromkeys(self.sides(), for_all)

    def context_plans(self) -> list[ContextPlan]:
        """Return the context entities to prepare."""
        return [ContextPlan(number, name, source) for number, (name, source) in enumerate(self.context.items())]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sample is not None:
            of_events = self.model_fields_set - {"sample", "out", "overwrite", "skip_existing", "seed"}
            for field in (name for name in type(self).model_fields if name in of_events):
                raise OptionError(
                    field, problem=("describes event files, and ", Option("sample"), " reads none"), fix="leave it out"
                )
        elif self.skip_existing:
            raise OptionError(
                "skip_existing",
                problem=("works only with ", Option("sample"), ", since event files may have changed"),
                fix="leave it out",
            )
        check_entities(self.query.name, self.item.name)
        self._check_events()
        self._check_attributes()
        self._check_context()
        self._check_entities_named()
        self._check_admission()
        return self

    def _check_events(self) -> None:
        if self.weight is not None and self.event is not None:
            raise OptionError(
                "weight",
                problem=("was given, and so was ", Option("event"), ": the weight comes from one of the two"),
                fix="leave out the other",
            )
        if self.event is not None and not self.event_weights:
            needs = ("needs ", Option("event_weights", "play=1,like=3,skip=-1"))
            raise OptionError("event", found=self.event, problem=needs)
        if self.event is None and self.event_weights:
            raise OptionError("event_weights", problem=("needs ", Option("event", "COLUMN")))
        if self.timestamp_format and self.timestamp is None:
            raise OptionError(
                "timestamp_format",
                problem="describes the column of times",
                fix=("name it with ", Option("timestamp")),
            )

    def _check_attributes(self) -> None:
        taken = {name.lower() for name in self.sides()}
        for field, files in (("features", self.features), ("content", self.content)):
            for file in files:
                if file.entity not in self.sides():
                    raise _no_such_entity(field, file.entity, self.sides())
                for name in file.columns:
                    check_entity(field, name)
                    if name.lower() in taken:
                        raise name_in_use(field, f"{file.entity}=…", name)
                    taken.add(name.lower())
        with_files = {file.entity for file in (*self.features, *self.content)}
        for entity in self.catalog:
            if entity not in with_files:
                either = alternatives(Option(name, f"{entity}=…") for name in ("features", "content"))
                problem = ("adds the ids in the files of ", either, ", which are missing")
                raise OptionError("catalog", found=entity, problem=problem, fix="add one")

    def _check_context(self) -> None:
        taken = {name.lower() for name in (*self.sides(), *self._feature_names())}
        for plan in self.context_plans():
            check_entity("context", plan.name)
            if plan.name.lower() in taken:
                raise name_in_use("context", str(plan), plan.name)
            taken.add(plan.name.lower())
            if plan.is_derived and self.timestamp is None:
                raise needs_timestamp("context", str(plan))
            if self.duplicates == "sum":
                problem = (Option("duplicates", "sum"), " merges events of different context")
                raise plan.error(problem, "leave out one of the two")

    def _check_entities_named(self) -> None:
        """Check that the options that name an entity name an existing one."""
        sides = list(self.sides())
        ages = {name: age for name, age in self.expire_after.items() if name != ALL}
        for field, given, existing in (
            ("names", self.names, [*sides, *self._feature_names(), *self.context]),
            ("min_count", self.min_count, sides),
            ("admit", self.admit, sides),
            ("expire_after", ages, sides),
        ):
            for unknown in sorted(set(given) - set(existing)):
                raise _no_such_entity(field, unknown, existing)

    def _check_admission(self) -> None:
        if self.hold_out_gap is not None and self.base is not None:
            raise OptionError(
                "hold_out_gap",
                problem="drops events of queries without any before it, of which those in a base dataset have some",
                fix=("leave it out, or leave out ", Option("base")),
            )
        if self.replay is not None and self.base is None:
            raise OptionError(
                "replay",
                found=f"{self.replay:g}",
                problem="draws from base datasets, and there is none",
                fix=("name one with ", Option("base", "DATA")),
            )
        for entity, minimum in self.admit.items():
            if entity in self.catalog:
                raise OptionError(
                    "admit",
                    found=f"{entity}={minimum}",
                    problem=(Option("catalog", entity), " gives rows to ids without any event"),
                    fix="leave out one of the two",
                )
        for max_age in self.expire_after.values():
            if self.timestamp is None:
                raise needs_timestamp("expire_after", max_age.text)

    def _feature_names(self) -> list[str]:
        return [name for file in self.features for name in file.columns]


class SyntheticSpec(Options):
    """The size and the content of synthetic listening.

    ``valid`` and ``test`` are met in expectation. Items have the feature ``genre``, unless ``query`` or ``item`` has
    that name.
    """

    group_notes: ClassVar = {"size": "Numbers may be written 1000000, 1_000_000 or 1e6."}

    queries: Integer = _size(2_000, "generate N query rows", value="N", ge=1)
    items: Integer = _size(4_000, "generate N item rows", value="N", ge=1)
    interactions: Integer = _size(100_000, "generate N interactions in all splits", value="N", ge=1)
    genres: Integer = _content(20, "plant N genres", value="N", ge=1)
    valid: Number = _size(0.1, "hold out this fraction as valid", value="FRACTION", ge=0, lt=1)
    test: Number = _size(0.1, "hold out this fraction as test", value="FRACTION", ge=0, lt=1)
    query: str = _content("customer", "name the querying entity", value="NAME")
    item: str = _content("track", "name the item entity", value="NAME")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        check_entities(self.query, self.item)
        if self.genres > self.items:
            raise OptionError("genres", found=self.genres, expected=f"at most one for each of the {self.items} items")
        if self.valid + self.test >= 1:
            raise OptionError(
                "valid",
                found=self.valid,
                problem=("leaves nothing for train with ", Option("test", self.test)),
                fix="lower one",
            )
        return self


class SynthesizeOptions(SyntheticSpec):
    """What to generate, and where."""

    seed: Integer = _content(0, "seed all draws (default: 0)", value="N")
    out: Location = _output(..., "write to this folder or s3://BUCKET/PREFIX; it must not exist", value="DIR")
    overwrite: bool = _output(False, "replace DIR if it holds a prepared dataset")
    skip_existing: bool = _output(False, "do nothing if DIR is complete and was made with the same options")
    work_dir: Path | None = _output(None, "keep temporary files here (default: near the output folder)", value="DIR")


def name_in_use(field: str, found: str, name: str) -> OptionError:
    """Return the error that ``name``, which the option ``field`` gives a column, is that of another entity."""
    return OptionError(
        field, found=found, problem=f"the name '{name}' is in use", fix="give the column another one: NAME=COLUMN"
    )


def needs_timestamp(field: str, found: str) -> OptionError:
    """Return the error that the option ``field`` needs the times of events."""
    return OptionError(
        field,
        found=found,
        problem="requires the time of each event",
        fix=("name its column with ", Option("timestamp")),
    )


def _no_such_entity(field: str, entity: str, existing: Iterable[str]) -> OptionError:
    return OptionError(
        field, found=f"{entity}=…", problem="no such entity", expected=" or ".join(f"'{name}'" for name in existing)
    )


def check_entities(query: str, item: str) -> None:
    """Check that ``query`` and ``item`` can be names of the entities of a dataset.

    Raises:
        OptionError: one cannot, or both are the same.
    """
    for field, name in (("query", query), ("item", item)):
        check_entity(field, name)
    if query.lower() == item.lower():
        raise OptionError(
            "item",
            found=item,
            problem=("has the same name as ", Option("query", query)),
            expected="two names (NAME=COLUMN)",
        )


def check_entity(field: str, name: str) -> None:
    """Check that ``name``, given with the option ``field``, can be the name of a folder and of a column of a dataset.

    Raises:
        OptionError: it cannot.
    """
    if not is_entity_name(name):
        raise OptionError(
            field,
            found=name,
            problem="cannot be the name of an entity",
            expected=f"a word of at most 100 ASCII letters, digits, '_' and '-', other than '{WEIGHT}' and "
            f"'{TIMESTAMP}'",
            fix=("if the column has another name: ", Option(field, "NAME=COLUMN")),
        )
