r"""Join several columns into one ID, so that a track may be an artist and a title: ``track=artist+title``.

    names = source_columns("item", "artist+title", ["user", "artist", "title"])     # ["artist", "title"]
    joined_sql(["artist", "title"])                                                 # SQL of Radiohead|Creep

The joining can be reversed (docs/preparing-data.md): ``\`` is written before each ``|`` and ``\`` of a value, and a row
in which a value is missing has no ID.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from crossfade.base.errors import InputError, format_names
from crossfade.base.text import similar_name

PLUS = "+"
_ID_ROLES = ("query", "item", "id")
_CONTEXT_ROLES = "context_"
"""How the roles of context begin (``event_context.py``)."""
SEPARATOR = "|"


def is_id_role(role: str) -> bool:
    """Return whether the column of ``role`` holds IDs."""
    return role in _ID_ROLES or role.startswith(_CONTEXT_ROLES)


def source_columns(role: str, column: str, names: Collection[str]) -> list[str]:
    """Return the columns that ``column`` names: those between plus signs, unless a column has exactly that name."""
    if is_id_role(role) and column not in names:
        return column.split(PLUS)
    return [column]


def possible_columns(columns: Mapping[str, str]) -> set[str]:
    """Return all columns that ``columns`` (role to column name) may name, whichever exist."""
    return {name for role, column in columns.items() for name in (column, *source_columns(role, column, ()))}


def joined_sql(values: Sequence[str]) -> str:
    """Return SQL of the ID that joins the SQL ``values``; of one value, that value with its type."""
    if len(values) == 1:
        return values[0]
    texts = [f"CAST({value} AS VARCHAR)" for value in values]
    given = " AND ".join(f"{text} <> ''" for text in texts)
    escaped = ", ".join(rf"replace(replace({text}, '\', '\\'), '{SEPARATOR}', '\{SEPARATOR}')" for text in texts)
    return f"CASE WHEN {given} THEN concat_ws('{SEPARATOR}', {escaped}) END"


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
