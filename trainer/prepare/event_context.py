# ruff: noqa: S608  (what is put into SQL is a name or an expression of this program)
"""Context of events, such as the hour, the device or the item before: entities whose rows are columns of the splits.

    plans = options.context_plans()
    types = count_context(groups, plans, id_types, newest)      # the table event_values: seq, split, context_0, …
    ...                                     # a vocabulary for each, of the query that ``counted_context_sql`` returns

A value comes from a column of the events or is derived from their order in time:

    timestamp:hour      the hour of the day in UTC, 0 to 23
    timestamp:weekday   the day of the week in UTC, 1 (Monday) to 7 (Sunday)
    timestamp:previous  the ID of the item of the query entity's event before, in any split

The vocabulary of a context entity has the values that occur in train; in the splits, an event without a value, or with
one that train does not have, has the row ``NO_ROW``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import duckdb

from crossfade.base.errors import Option, OptionError
from crossfade.trainer.data.time_values import exceed_seconds_range
from crossfade.trainer.prepare.database import count_rows
from crossfade.trainer.prepare.event_groups import EventGroups, Report
from crossfade.trainer.prepare.extend import SQL_TYPES, BaseDataset
from crossfade.trainer.prepare.id_encoder import IdType
from crossfade.trainer.prepare.option_values import HOUR, PREVIOUS, WEEKDAY, ContextPlan
from crossfade.trainer.prepare.vocabulary_tables import VocabularyKey

_DERIVED = {
    HOUR: "(timestamp % 86400 + 86400) % 86400 // 3600",
    WEEKDAY: "(floor(timestamp / 86400)::BIGINT % 7 + 10) % 7 + 1",  # 1970-01-01 was a Thursday
    PREVIOUS: "lag(i.id) OVER (PARTITION BY query ORDER BY timestamp, i.id, seq)",
}
"""SQL of each derived value; SQL's % has the sign of the timestamp, which may be below 0."""


def check_base_context(plans: Sequence[ContextPlan], base: BaseDataset) -> None:
    """Check that the new dataset has the context of ``base``, whose rows it keeps.

    Raises:
        InputError: it lacks some, or a name is that of another kind of entity there.
    """
    names = [plan.name for plan in plans]
    for name in base.manifest.context:
        if name not in names:
            raise OptionError(
                "base",
                found=base.folder.uri,
                problem=f"its events have the context '{name}', but these have none",
                fix=("add ", Option("context", f"{name}=COLUMN")),
            )
    for plan in plans:
        if plan.name in base.manifest.entities and plan.name not in base.manifest.context:
            raise plan.error(f"'{plan.name}' is another entity of the base dataset", "choose another name")


def count_context(
    groups: EventGroups, plans: Sequence[ContextPlan], id_types: Mapping[str, IdType], newest: object
) -> dict[str, IdType]:
    """Create the table ``event_values`` (seq, split, weight, context_0, …) of the view ``interactions``.

    Returns the type of the values of each context entity; ``id_types`` are those of the events, by role. The table
    ``counts_KEY`` has the values of each in train.

    Raises:
        InputError: hours are derived from timestamps, up to the ``newest``, that are not in seconds, or an entity has
            no value in train.
    """
    types: dict[str, IdType] = {}
    for plan in plans:
        derived: IdType = id_types["item"] if plan.source == PREVIOUS else "int64"
        types[plan.name] = derived if plan.is_derived else id_types[plan.key]
        if plan.source in (HOUR, WEEKDAY) and isinstance(newest, int) and exceed_seconds_range(newest):
            raise plan.error(
                f"requires seconds since 1970, but the timestamps reach {newest}",
                ("name their unit with ", Option("timestamp_format", "epoch-ms")),
            )
    groups.apply([partial(_create_event_values, plans, types)], found=[f"counts_{plan.key}" for plan in plans])
    for plan in plans:
        if not count_rows(groups.connection, f"counts_{plan.key}"):
            raise plan.error("no event of train has a value", "name another column, or leave the context out")
    return types


def _create_event_values(
    plans: Sequence[ContextPlan], types: Mapping[str, IdType], connection: duckdb.DuckDBPyConnection
) -> Report:
    values = "".join(
        f", CAST({_DERIVED.get(plan.source, f'c.{plan.key}')} AS {SQL_TYPES[types[plan.name]]}) AS {plan.key}"
        for plan in plans
    )
    connection.execute(
        f"CREATE TABLE event_values AS SELECT seq, split, weight{values} FROM interactions "
        "JOIN ids_item i ON i.number = item LEFT JOIN event_context c USING (seq)"
    )
    for plan in plans:
        connection.execute(
            f"CREATE TABLE counts_{plan.key} AS SELECT {plan.key} AS id, count(*) FILTER (weight > 0) AS count "
            f"FROM event_values WHERE split = 0 AND {plan.key} IS NOT NULL GROUP BY {plan.key}"
        )
    return {}


def counted_context_sql(key: VocabularyKey) -> str:
    """Return a query for each value in train, with its number of interactions, for ``build_vocabulary``."""
    return f"SELECT NULL::BIGINT AS number, id, sum(count)::BIGINT AS count FROM counts_{key} GROUP BY id"
