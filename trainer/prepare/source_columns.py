"""Which columns are read, by role, and whether a table has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from crossfade.base.errors import InputError, format_names
from crossfade.base.text import similar_name
from crossfade.trainer.prepare.options import PrepareOptions


def check_columns(table: str, found: Sequence[str], columns: Iterable[str]) -> None:
    """Check that ``table``, whose columns are ``found``, has each of ``columns`` once.

    Raises:
        InputError: it does not.
    """
    for column in columns:
        if column not in found:
            near = similar_name(column, found)
            hint = f" (did you mean '{near}'?)" if near is not None else ""
            raise InputError(f"{table}: has no column '{column}'{hint}; its columns are: {format_names(found)}")
        if found.count(column) > 1:
            raise InputError(f"{table}: has {found.count(column)} columns '{column}'; rename all but one")


def columns_by_role(options: PrepareOptions, context: Mapping[str, str]) -> dict[str, str]:
    """Return the column of each role that has one; ``context`` has the columns of context, by role."""
    columns = {
        "query": options.query.column,
        "item": options.item.column,
        "weight": options.weight,
        "event": options.event,
        "timestamp": options.timestamp,
    }
    return {**{role: column for role, column in columns.items() if column is not None}, **context}
