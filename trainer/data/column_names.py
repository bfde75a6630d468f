"""Names of columns that every dataset may have, and what an entity may be called; imports little."""

from __future__ import annotations

import re

WEIGHT = "weight"
TIMESTAMP = "timestamp"
NO_ROW = -1
"""The row of a context entity in an interaction that has no value of it."""

MAX_CONTENT_WIDTH = 2**14
"""Numbers of a value of content, at most."""
_ENTITY_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")


def is_entity_name(name: str) -> bool:
    """Return whether ``name`` can be the name of an entity, which also names folders, columns and tables."""
    return _ENTITY_NAME.fullmatch(name) is not None and name.lower() not in (WEIGHT, TIMESTAMP)
