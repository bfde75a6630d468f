"""Name the tables, collections, and indexes of databases: PREFIX_ENTITY, in the characters that all of them accept.

database_names("lastfm", ["customer", "artist"])          # {"customer": "lastfm_customer", "artist": "lastfm_artist"}
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from crossfade.base.errors import InputError

MAX_LENGTH = 48
"""PostgreSQL's limit of 63 bytes, less the longest suffix of a constraint or an index."""
_PREFIX = re.compile(r"[a-z][a-z0-9_]*")


def database_names(prefix: str, entities: Iterable[str], *, is_option: bool = True) -> dict[str, str]:
    """Return the name of each entity; ``prefix`` is the value of --name, or the name of the job if not ``is_option``.

    Raises:
        InputError: ``prefix`` has other characters than a-z, 0-9, and _, or a name is too long or occurs twice.
    """
    if not is_option:
        prefix = _plain(prefix)
    elif not _PREFIX.fullmatch(prefix):
        raise InputError(f"--name {prefix}: expected a lower-case letter, then letters a-z, digits, and '_'")
    names = {entity: f"{prefix}_{_plain(entity)}" for entity in entities}
    for entity, name in names.items():
        if len(name) > MAX_LENGTH:
            raise InputError(
                f"'{name}' would have {len(name)} characters, of {MAX_LENGTH} at most in PostgreSQL; choose a shorter "
                "prefix with --name"
            )
        if list(names.values()).count(name) > 1:
            raise InputError(f"'{name}' would hold several entities; export '{entity}' by itself, with --entity")
    return names


def _plain(name: str) -> str:
    """Return ``name``, letters, digits, - and _, in lower case and with _ only."""
    return name.lower().replace("-", "_")
