# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Raw events become vocabularies, interaction shards and a manifest (see ``manifest.py`` for what is written).

    manifest = prepare(PrepareOptions(train=["plays.parquet"], out=Path("data/plays"), hold_out="random:0.1"))
    print(describe(manifest, Path("data/plays")))

DuckDB reads, checks, splits, joins and sorts, out of core; the same options and files give the same tables, byte for
byte, whatever the number of threads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from kvstore.errors import CrossfadeError, InputError
from kvstore.storage import Folder
from trainer.data.base_vocabulary import OPTION, Base, carry_names, extend_vocabulary, load_base, open_base
from trainer.data.build_vocabulary import ROLES, NamesFile, Role, build_vocabulary, join_names, write_vocabulary
from trainer.data.database import count, identifier, run, working_database
from trainer.data.events import Columns, EventTable, IdChoice, check_event_weights, read_events
from trainer.data.manifest import SPLITS, TIMESTAMP, WEIGHT, Entity, Manifest, Split
from trainer.data.output import WORK, PartWriter, check_free, row_group_rows, staged_folder
from trainer.data.progress import Progress, Silent
from trainer.data.raw import Format, RawFile, find_files
from trainer.data.splits import apply_hold_out, plan_hold_outs

_ENTITY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_SEED_MAX = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What to prepare, and how. ``train``, ``valid`` and ``test`` are paths or globs.

    ``query`` and ``item`` name the two entities; their ids are in the columns of the same name unless ``query_column``
    and ``item_column`` say otherwise (``lightgcn`` files have no columns). ``weight`` is 1 unless a column has it, or
    ``event_weights`` gives it to each value of the column ``event``; interactions of weight 0 are dropped. ``ids``
    'auto' reads ids of text files as integers where all of a file are, 'string' reads every id as text. Hold-outs are
    described in ``splits.py``. ``names`` maps an entity to the file with its names. ``vocabulary`` is an earlier data
    set, a path or URI, whose ids keep their rows (``base_vocabulary.py``). ``seed`` decides on the order of the shards
    and on random hold-outs. ``memory_bytes`` and ``threads`` bound DuckDB (default: half of the memory and
    4 GiB at most; every core).
    """

    out: Path
    train: Sequence[str | Path]
    valid: Sequence[str | Path] = ()
    test: Sequence[str | Path] = ()
    format: Format | None = None
    query: str = "customer"
    item: str = "item"
    query_column: str | None = None
    item_column: str | None = None
    weight: str | None = None
    event: str | None = None
    event_weights: Mapping[str, float] = field(default_factory=dict)
    timestamp: str | None = None
    ids: IdChoice = "auto"
    hold_out: str | None = None
    hold_out_valid: str | None = None
    hold_out_test: str | None = None
    names: Mapping[str, NamesFile] = field(default_factory=dict)
    vocabulary: str | None = None
    seed: int = 0
    overwrite: bool = False
    memory_bytes: int | None = None
    threads: int | None = None

    def columns(self) -> Columns:
        """The columns to read."""
        return Columns(
            query=self.query_column or self.query,
            item=self.item_column or self.item,
            weight=self.weight,
            event=self.event,
            event_weights=self.event_weights,
            timestamp=self.timestamp,
        )


def prepare(options: PrepareOptions, progress: Progress | None = None) -> Manifest:
    """Write the prepared data set ``options.out`` and return its manifest.

    It appears whole, in one move; on an error or Ctrl-C nothing is left behind.

    Raises:
        InputError: an option or a file is wrong; the message says which, where, and how to mend it.
        CrossfadeError: there is not enough memory or disk.
    """
    progress = progress or Silent()
    _check(options)
    files, names = _find_inputs(options)
    base = _find_base(options)
    check_free(options.out, options.overwrite)
    with staged_folder(options.out, options.overwrite) as partial:
        with working_database(partial / WORK, options.memory_bytes, options.threads) as connection:
            manifest = _Preparation(connection, options, partial, progress, base).run(files, names)
        manifest.write(Folder(partial))
    return manifest


def check_entities(query: str, item: str) -> None:
    """Refuse names of entities that could be no folder or column of a data set.

    Raises:
        InputError: one cannot, or both are the same.
    """
    for option, name in (("--query", query), ("--item", item)):
        if not _ENTITY.fullmatch(name) or name.lower() in (WEIGHT, TIMESTAMP):
            raise InputError(
                f"{option} {name}: cannot be the name of an entity; expected a word of letters, digits, '_' and '-', "
                f"other than '{WEIGHT}' and '{TIMESTAMP}' (a column of another name: {option} NAME=COLUMN)"
            )
    if query.lower() == item.lower():
        raise InputError(f"--query {query} --item {item}: the two entities need different names (--item NAME=COLUMN)")


def _check(options: PrepareOptions) -> None:
    check_entities(options.query, options.item)
    check_event_weights(options.event_weights)
    if not options.train:
        raise InputError("no events: name files with --train")
    if options.weight is not None and options.event is not None:
        raise InputError("--weight and --event: the weight comes from one of the two; leave out the other")
    if (options.event is None) != (not options.event_weights):
        raise InputError(
            "--event and --event-weights belong together: --event COLUMN --event-weights play=1,like=3,skip=0"
        )
    unknown = sorted(set(options.names) - {options.query, options.item})
    if unknown:
        raise InputError(f"--names {unknown[0]}=…: no such entity; expected '{options.query}' or '{options.item}'")
    if not 0 <= options.seed <= _SEED_MAX:
        raise InputError(f"--seed {options.seed}: expected an integer from 0 to {_SEED_MAX}")
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads {options.threads}: expected at least 1")
    given = {split for split in ("valid", "test") if getattr(options, split)}
    plan_hold_outs(
        options.hold_out, options.hold_out_valid, options.hold_out_test, given, options.timestamp is not None
    )


def _find_inputs(options: PrepareOptions) -> tuple[dict[str, list[RawFile]], dict[str, RawFile]]:
    """The files of each split and of each entity's names."""
    files = {split: find_files(f"--{split}", getattr(options, split), options.format) for split in SPLITS}
    named = {entity: find_files(f"--names {entity}", [names.path], None)[0] for entity, names in options.names.items()}
    seen: dict[Path, str] = {}
    out = options.out.resolve()
    for split, some in files.items():
        for file in some:
            real = file.path.resolve()
            if real in seen:
                raise InputError(f"--{split} {file}: is given in --{seen[real]} already; expected each file once")
            seen[real] = split
            if file.format == "lightgcn":
                _check_bare(options, file)
    for file in [*(file for some in files.values() for file in some), *named.values()]:
        if file.path.resolve().is_relative_to(out):
            raise InputError(f"{file}: lies inside --out {options.out}, which would be replaced; choose another --out")
    return files, named


def _find_base(options: PrepareOptions) -> Base | None:
    if options.vocabulary is None:
        return None
    base = open_base(options.vocabulary)
    base.check_entities(options.query, options.item)
    if base.folder.uri == Folder(options.out).uri:
        raise InputError(
            f"{OPTION} {options.vocabulary}: is --out itself, which would be replaced; choose another --out"
        )
    return base


def _check_bare(options: PrepareOptions, file: RawFile) -> None:
    for option in ("weight", "event", "timestamp", "query_column", "item_column"):
        value = getattr(options, option)
        if value is not None:
            wrong = f"--{option.partition('_')[0]}"
            raise InputError(
                f"{file}: a lightgcn file has no column '{value}'; leave it out of {wrong}, or mend --format"
            )


class _Preparation:
    """The steps, in order, on one database."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        options: PrepareOptions,
        root: Path,
        progress: Progress,
        base: Base | None,
    ) -> None:
        self._connection = connection
        self._base = base
        self._options = options
        self._root = root
        self._progress = progress
        self._facts: dict[str, str | int | float | bool | list[str] | None] = {}

    def run(self, files: Mapping[str, list[RawFile]], names: Mapping[str, RawFile]) -> Manifest:
        """Everything but the manifest file."""
        options = self._options
        base = self._base
        text_ids = [role for role in ROLES if base and base.id_type(role) == "string"]
        events = read_events(self._connection, files, options.columns(), options.ids, self._progress, text_ids)
        self._facts["dropped_zero_weight"] = events.zero_weight
        self._facts["lines_without_items"] = events.lines_without_items
        self._hold_out(files, events)
        rows = self._count_splits(files)
        entities = {
            options.query: self._vocabulary("query", options.query, events, names),
            options.item: self._vocabulary("item", options.item, events, names),
        }
        splits = {split: self._write_split(split, rows[split], events) for split in SPLITS if rows[split]}
        return Manifest(
            query=options.query,
            item=options.item,
            entities=entities,
            splits=splits,
            has_timestamp=events.timestamps is not None,
            source={**_source(options), **self._facts},
        )

    def _hold_out(self, files: Mapping[str, list[RawFile]], events: EventTable) -> None:
        options = self._options
        plan = plan_hold_outs(
            options.hold_out,
            options.hold_out_valid,
            options.hold_out_test,
            {split for split in files if files[split]} - {"train"},
            events.timestamps is not None,
        )
        run(self._connection, "CREATE VIEW numbered AS SELECT *, rowid AS seq FROM events")
        if not count(self._connection, "SELECT count(*) FILTER (split = 0) FROM numbered"):
            raise InputError("--train: the files hold no interaction with a weight above 0; expected one at least")
        if plan:
            self._progress.phase("hold out", len(plan), "split")
        source, stayed = "numbered", 0
        for split, hold_out in plan.items():
            target = f"held_out_{split}"
            stayed += apply_hold_out(
                self._connection,
                hold_out,
                split,
                seed=options.seed,
                timestamps=events.timestamps,
                source=source,
                target=target,
            )
            if source != "numbered":
                run(self._connection, f"DROP TABLE {source}")
            source = target
            self._progress.advance(1)
        run(self._connection, f"CREATE VIEW interactions AS SELECT * FROM {source}")
        self._facts["kept_for_train"] = stayed

    def _count_splits(self, files: Mapping[str, list[RawFile]]) -> dict[str, int]:
        rows = {
            split: count(self._connection, "SELECT count(*) FILTER (split = ?) FROM interactions", [code])
            for code, split in enumerate(SPLITS)
        }
        for split in SPLITS:
            if files[split] and not rows[split]:
                raise InputError(
                    f"--{split}: the files hold no interaction with a weight above 0; mend them, or leave out --{split}"
                )
        return rows

    def _vocabulary(self, role: Role, entity: str, events: EventTable, names: Mapping[str, RawFile]) -> Entity:
        if self._base is None:
            self._progress.phase(f"vocabulary of {entity}", None, "row")
            self._progress.advance(build_vocabulary(self._connection, role))
        else:
            self._extend(self._base, role, entity, events)
        if entity in names:
            report = join_names(self._connection, role, names[entity], self._options.names[entity])
            self._facts[f"{entity}_names_ignored"] = report.unknown
            self._facts[f"{entity}_named"] = report.named
        base = self._base.entity(role) if self._base else None
        if base and base.named:
            carry_names(self._connection, role, joined=entity in names)
        return write_vocabulary(
            self._connection,
            role,
            root=self._root,
            entity=entity,
            id_type=events.id_types[role],
            named=entity in names or bool(base and base.named),
            forgotten=base.forgotten if base else (),
        )

    def _extend(self, base: Base, role: Role, entity: str, events: EventTable) -> None:
        base.check_id_type(role, events.id_types[role])
        load_base(self._connection, base, role, self._progress)
        self._progress.phase(f"vocabulary of {entity}", None, "row")
        extended = extend_vocabulary(self._connection, role)
        self._progress.advance(extended.kept + extended.new)
        self._facts[f"{entity}_kept"] = extended.kept
        self._facts[f"{entity}_unseen"] = extended.unseen
        self._facts[f"{entity}_new"] = extended.new

    def _write_split(self, split: str, rows: int, events: EventTable) -> Split:
        options = self._options
        fields = [(options.query, pa.int64()), (options.item, pa.int64()), (WEIGHT, pa.float32())]
        if events.timestamps is not None:
            fields.append((TIMESTAMP, pa.int64()))
        schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])
        timestamp = ", timestamp" if events.timestamps is not None else ""
        # Hashed twice: DuckDB's hash of several values combines them cheaply and would leave neighbours close together.
        shuffled = self._connection.sql(
            f"SELECT q.row AS {identifier(options.query)}, i.row AS {identifier(options.item)}, weight{timestamp} "
            "FROM interactions e "
            "JOIN vocabulary_query q ON q.id = e.query_id JOIN vocabulary_item i ON i.id = e.item_id "
            f"WHERE split = {SPLITS.index(split)} ORDER BY hash(hash({options.seed}::BIGINT, seq)), seq"
        )
        self._progress.phase(f"write {split}", rows, "row")
        group_rows = row_group_rows(rows)
        with PartWriter(self._root, split, schema, group_rows) as writer:
            for batch in shuffled.to_arrow_reader(group_rows):
                writer.write(batch)
                self._progress.advance(batch.num_rows)
            written = Split(files=writer.close())
        if written.rows != rows:
            raise CrossfadeError(
                f"{split}: {rows} interactions were counted, but {written.rows} written; prepare again"
            )
        return written


def _source(options: PrepareOptions) -> dict[str, str | int | float | bool | list[str] | None]:
    """Where the data set comes from, for its manifest."""
    hold_outs = {name: getattr(options, name) for name in ("hold_out", "hold_out_valid", "hold_out_test")}
    base = {} if options.vocabulary is None else {"vocabulary": options.vocabulary}
    return {
        "command": "prepare",
        **base,
        **{split: [str(path) for path in getattr(options, split)] for split in SPLITS},
        **{name: value for name, value in hold_outs.items() if value is not None},
        "seed": options.seed,
        "duckdb": duckdb.__version__,
        "pyarrow": pa.__version__,
    }


def describe(manifest: Manifest, folder: Path) -> str:
    """A summary for people of the data set ``manifest`` in ``folder``: what is in it, and what was left out and why."""
    query, item = manifest.entities[manifest.query], manifest.entities[manifest.item]
    train = manifest.splits["train"].rows
    width = max(map(len, [*manifest.entities, *SPLITS]))
    lines = [f"{folder}: {manifest.query} x {manifest.item}"]
    for name, entity in manifest.entities.items():
        ids = "integer ids" if entity.id_type == "int64" else "string ids"
        lines.append(f"  {name:{width}} {entity.rows:>15,} rows          {ids}; most in train: {_top(folder, entity)}")
    for name, split in manifest.splits.items():
        size = sum(file.bytes for file in split.files)
        groups = sum(len(file.row_groups) for file in split.files)
        lines.append(
            f"  {name:{width}} {split.rows:>15,} interactions  {len(split.files)} file(s), {groups} row groups, "
            f"{size / 1e6:,.1f} MB"
        )
    lines.append(
        f"  train has {train / (query.rows * item.rows):.3%} as many interactions as there are pairs; on average "
        f"{train / query.rows:,.1f} interactions of each {manifest.query} "
        f"and {train / item.rows:,.1f} of each {manifest.item}"
    )
    return "\n".join([*lines, *(f"  {line}" for line in _left_out(manifest))])


def _top(folder: Path, entity: Entity) -> str:
    first = next(pq.ParquetFile(folder / entity.files[0].path).iter_batches(batch_size=1)).to_pylist()[0]
    name = first.get("name")
    return f"{first['id']}{f' {name}' if name else ''} ({first['count']:,})"


def _left_out(manifest: Manifest) -> list[str]:
    facts = manifest.source
    lines = []
    if facts.get("dropped_zero_weight"):
        lines.append(f"dropped: {facts['dropped_zero_weight']:,} interactions of weight 0, which would teach nothing")
    if facts.get("lines_without_items"):
        lines.append(f"dropped: {facts['lines_without_items']:,} lines that name no item")
    lines = lines or ["dropped: nothing"]
    if facts.get("kept_for_train"):
        lines.append(
            f"not held out: {facts['kept_for_train']:,} interactions, since each {manifest.query} keeps one for train"
        )
    for name, entity in manifest.entities.items():
        named, ignored = facts.get(f"{name}_named"), facts.get(f"{name}_names_ignored")
        if named is not None:
            lines.append(
                f"names: {named:,} of {entity.rows:,} rows of {name} have one; "
                f"{ignored:,} names ignored, whose ids are in no event"
            )
    return lines
