"""Check that a table has the columns that are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crossfade.base.errors import InputError, format_names
from crossfade.base.text import similar_name


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
