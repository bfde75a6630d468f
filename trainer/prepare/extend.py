# ruff: noqa: S608  (what is put into SQL is a number or a name of this program)
"""Extend the vocabularies of a base dataset: its IDs keep their rows, and new IDs get the rows after them.

    base = open_base_dataset("s3://music/day1")
    base.check_entities("customer", "track")
    load_base(connection, base, "query", "customer", progress)      # the table base_query (row, id, name, …)
    entity = base.manifest.entities["customer"]
    report = extend_vocabulary(connection, "query", entity, counted_ids_sql("query"))   # the table vocabulary_query

So a table trained on the base dataset is the beginning of the new one, and ``checkpoint.warm_start_from`` can load it.
Vacant rows of the base dataset stay vacant: their ID is null, which no event has. Only where IDs expire
(``admission.py``) do new IDs reuse such rows, and those of expired IDs, before the vocabulary grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from crossfade.base.errors import InputError, Option, OptionError, Text, command, join
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import (
    DatasetManifest,
    Entity,
    data_fingerprint,
    read_manifest,
)
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.prepare.database import count_rows, execute_on, fetch_one
from crossfade.trainer.prepare.id_encoder import SIDES, IdType
from crossfade.trainer.prepare.option_values import FeatureFile
from crossfade.trainer.prepare.options import PrepareOptions, name_in_use
from crossfade.trainer.prepare.vocabulary_tables import (
    IdPolicy,
    VocabularyKey,
    last_seen_sql,
    sql_number,
)

SQL_TYPES = {"int64": "BIGINT", "string": "VARCHAR"}


@dataclass(frozen=True)
class BaseDataset:
    """The dataset whose vocabularies are extended; ``fingerprint`` identifies it in lineages."""

    folder: Folder
    manifest: DatasetManifest
    fingerprint: int

    def lineage(self) -> list[int]:
        """Return the lineage of a dataset that extends this one."""
        return [*self.manifest.lineage, self.fingerprint]

    def check_entities(self, query: str, item: str) -> None:
        """Check that the new dataset has the same two entities.

        Raises:
            InputError: it has others.
        """
        if (query, item) != (self.manifest.query, self.manifest.item):
            expected = (self.manifest.query, self.manifest.item)
            options = [Option(side, f"{name}=COLUMN") for side, name in zip(SIDES, expected, strict=True)]
            found = f"its entities are {' and '.join(expected)}, but these events are prepared as {query} and {item}"
            raise self.error((found, "; expected the same entities: ", join(options, " ")))

    def check_attributes(self, options: PrepareOptions) -> None:
        """Check that the names of features and content do not mean something else in this dataset.

        Raises:
            InputError: one does.
        """
        owners = self.manifest.feature_owners()
        for file, name in _columns(options.features):
            if owners.get(name, file.entity) != file.entity:
                raise OptionError(
                    "features",
                    found=f"{file.entity}=…",
                    problem=f"'{name}' is a feature of {owners[name]} in the base dataset",
                    fix="give this one another name: NAME=COLUMN",
                )
        features = {name.lower() for name in owners}
        for file, name in _columns(options.content):
            of_others = [entity for entity, columns in self.manifest.content.items() if name in columns]
            if name.lower() in features or of_others not in ([], [file.entity]):
                raise name_in_use("content", f"{file.entity}=…", name)

    def error(self, problem: Text) -> OptionError:
        """Return the error that this dataset cannot be the base."""
        return OptionError("base", found=self.folder.uri, problem=problem)

    def string_id_sides(self) -> list[str]:
        """Return the sides whose IDs are strings."""
        sides = {"query": self.manifest.query, "item": self.manifest.item}
        return [side for side, name in sides.items() if self.manifest.entities[name].id_type == "string"]

    def check_id_type(self, entity: str, found: IdType) -> None:
        """Check that the IDs of ``entity`` that were read have the type of the base vocabulary.

        Raises:
            InputError: they have another type.
        """
        id_type = self.manifest.entities[entity].id_type
        if found != id_type:
            kinds = {"int64": "integers", "string": "strings"}
            choice = {"int64": "integer", "string": "string"}[id_type]
            raise self.error(
                (
                    f"its ids of {entity} are {kinds[id_type]}, but those of the events are {kinds[found]}; "
                    "expected the same: name the column that has them, cast it, or read it with ",
                    Option("id_type", choice),
                )
            )

    def check_ids(self, entity: str, counts: Sequence[object]) -> None:
        """Check the ``counts`` of the vocabulary of ``entity``: of ids, of distinct ones, and of rows without one.

        Raises:
            InputError: an id has two rows, or other rows are vacant than the manifest lists.
        """
        ids, distinct, nulls = counts
        vacant = len(self.manifest.entities[entity].vacant_rows)
        if ids != distinct or nulls != vacant:
            raise self.error(
                f"its vocabulary of {entity} has {ids} ids, {distinct} of them distinct, and {nulls} rows without one, "
                f"of which the manifest lists {vacant}; {command('validate', self.folder.uri)} shows where"
            )


def _columns(files: Sequence[FeatureFile]) -> list[tuple[FeatureFile, str]]:
    return [(file, name) for file in files for name in file.columns]


@dataclass(frozen=True)
class ExtensionReport:
    """How a base vocabulary was extended, in numbers of rows.

    Attributes:
        kept: Ids of the base dataset that keep their row.
        unseen: Kept IDs that occur in no new event.
        new: Ids that got a row.
        expired: Ids of the base dataset that lost their row.
        reused: New IDs that got a vacant row of the base dataset.
    """

    kept: int
    unseen: int
    new: int
    expired: int
    reused: int


def open_base_dataset(location: str) -> BaseDataset:
    """Open the dataset at ``location``, a path or URI.

    Raises:
        InputError: there is none.
    """
    folder = Folder(location)
    try:
        return BaseDataset(folder, read_manifest(folder), data_fingerprint(folder))
    except InputError as error:
        raise InputError(Option("base"), " ", error.args) from error


def load_base(
    connection: duckdb.DuckDBPyConnection, base: BaseDataset, key: VocabularyKey, name: str, progress: ProgressReporter
) -> None:
    """Create the table ``base_KEY`` from the vocabulary of the entity ``name``, one row group at a time.

    Its columns: row, id, name, ``earlier_count`` (the counts there and in the datasets before), ``last_seen`` (null if
    unknown) and ``lineage_index`` (of the dataset in which the ID got the row).

    Raises:
        InputError: a file of the vocabulary is missing or corrupt, or an ID has two rows.
    """
    entity = base.manifest.entities[name]
    vocabulary = Vocabulary(base.folder, base.manifest, name)
    connection.execute(
        f"CREATE TABLE base_{key} (row BIGINT, id {SQL_TYPES[entity.id_type]}, name VARCHAR, earlier_count BIGINT, "
        "last_seen BIGINT, lineage_index BIGINT)"
    )
    progress.phase(f"base {name}", entity.rows, "row")
    names, earlier = ["name"] if entity.has_names else [], ["earlier_count"] if entity.has_earlier_count else []
    seen = ["last_seen", "lineage_index"] if entity.has_last_seen else []
    values = ", ".join(["row", "id", *(names or ["NULL"]), " + ".join(["count", *earlier]), *(seen or ["NULL", "0"])])
    for table in vocabulary.iter_tables(["row", "id", *names, "count", *earlier, *seen]):
        execute_on(connection, table, f"INSERT INTO base_{key} SELECT {values} FROM part")
        progress.advance(table.num_rows)
    counts = "count(id), count(DISTINCT id), count(*) FILTER (id IS NULL)"
    base.check_ids(name, fetch_one(connection, f"SELECT {counts} FROM base_{key}"))


def extend_vocabulary(
    connection: duckdb.DuckDBPyConnection,
    key: VocabularyKey,
    entity: Entity,
    counted: str,
    policy: IdPolicy | None = None,
) -> ExtensionReport:
    """Create the table ``vocabulary_KEY`` from ``base_KEY``, of the ``entity`` of the base, and the query ``counted``.

    Its columns: row, number, id, count, earlier_count, last_seen and lineage_index. Rows of the base stay, with their
    count in the new train split, which may be 0; those without an event have no number. New IDs follow by count
    descending, then by ID. Where ``policy`` lets IDs expire, the first new IDs get the vacant rows instead, in order.
    """
    connection.execute(f"CREATE TABLE counted AS {counted}")
    seen = count_rows(connection, f"counted SEMI JOIN base_{key} USING (id)")
    _make_base_rows(connection, key, policy)
    may_reuse = "id IS NULL" if policy is not None and policy.expire_before is not None else "false"
    connection.execute(
        "CREATE TABLE vacant AS SELECT row, row_number() OVER (ORDER BY row) AS position FROM base_rows "
        f"WHERE {may_reuse}"
    )
    last_seen, join = last_seen_sql(key, policy)
    connection.execute(
        f"CREATE TABLE new_ids AS SELECT number, id, counted.count AS count, {last_seen} AS last_seen, "
        "row_number() OVER (ORDER BY counted.count DESC, number IS NULL, id) AS position "
        f"FROM counted{join} ANTI JOIN base_{key} USING (id)"
    )
    vacant, new = (count_rows(connection, table) for table in ("vacant", "new_ids"))
    connection.execute(
        f"CREATE TABLE vocabulary_{key} AS "
        "SELECT row, number, id, count, earlier_count, last_seen, lineage_index FROM base_rows "
        f"WHERE row NOT IN (SELECT row FROM vacant WHERE position <= {new}) UNION ALL "
        f"SELECT coalesce(vacant.row, {entity.rows - vacant - 1} + position), number, id, count, 0, last_seen, "
        f"{0 if policy is None else policy.lineage_index} FROM new_ids LEFT JOIN vacant USING (position)"
    )
    before = entity.rows - len(entity.vacant_rows)
    expired = count_rows(connection, f"base_{key} WHERE id IS NOT NULL")
    expired -= count_rows(connection, "base_rows WHERE id IS NOT NULL")
    for table in ("counted", "base_rows", "vacant", "new_ids"):
        connection.execute(f"DROP TABLE {table}")
    kept, reused = before - expired, min(vacant, new)
    return ExtensionReport(kept=kept, unseen=kept - seen, new=new, expired=expired, reused=reused)


def _make_base_rows(connection: duckdb.DuckDBPyConnection, key: VocabularyKey, policy: IdPolicy | None) -> None:
    """Create the table ``base_rows``: the rows of ``base_KEY`` as in ``vocabulary_KEY``, expired IDs set to null."""
    last_seen, join, is_kept = "b.last_seen", "", "true"
    if policy is not None and policy.track_last_seen:
        # An ID counts as seen even if all its events were dropped. An unknown time counts as that of the newest event.
        newest = sql_number(policy.newest)
        in_catalog = f"CASE WHEN c.id IS NOT NULL AND s.id IS NULL THEN {newest} END"
        last_seen = f"coalesce(greatest(b.last_seen, s.last_seen, {in_catalog}), {newest})"
        join = f" LEFT JOIN seen_{key} s ON s.id = b.id"
    if policy is not None and policy.expire_before is not None:
        is_kept = f"c.id IS NOT NULL OR {last_seen} >= {policy.expire_before}"
    connection.execute(
        "CREATE TABLE base_rows AS SELECT row, number, CASE WHEN is_kept THEN id END AS id, count, "
        "CASE WHEN is_kept THEN earlier_count ELSE 0 END AS earlier_count, "
        "CASE WHEN is_kept THEN last_seen END AS last_seen, lineage_index FROM ("
        "SELECT b.row, c.number, b.id, coalesce(c.count, 0) AS count, b.earlier_count, "
        f"{last_seen} AS last_seen, b.lineage_index, b.id IS NOT NULL AND ({is_kept}) AS is_kept "
        f"FROM base_{key} b LEFT JOIN counted c ON c.id = b.id{join})"
    )


def carry_names(connection: duckdb.DuckDBPyConnection, key: VocabularyKey, *, joined: bool) -> None:
    """Create the table ``names_KEY`` (id, name) of the names in ``base_KEY``.

    If names were ``joined`` to the new vocabulary, the table exists, and its names take precedence.
    """
    base_names = f"SELECT id, name FROM base_{key} WHERE id IS NOT NULL AND name IS NOT NULL"
    if joined:
        connection.execute(f"INSERT INTO names_{key} SELECT * FROM ({base_names}) ANTI JOIN names_{key} USING (id)")
    else:
        connection.execute(f"CREATE TABLE names_{key} AS {base_names}")
