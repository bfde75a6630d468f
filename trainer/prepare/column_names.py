"""Check that a table has the columns that options name, and suggest the ones that were probably meant.

check_columns("plays.csv", ["User Id", "Song Title"], ["User Id", "song_title"])    # did you mean 'Song Title'?
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from crossfade.kvstore.errors import InputError, format_names


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


def similar_name(name: str, names: Iterable[str]) -> str | None:
    """Return that of ``names`` which is most like ``name``, without regard to case, blanks, underscores and dashes."""
    plain = {re.sub(r"[\W_]+", "", other.casefold()): other for other in names}
    near = difflib.get_close_matches(re.sub(r"[\W_]+", "", name.casefold()), plain, n=1, cutoff=0.75)
    return plain[near[0]] if near else None
