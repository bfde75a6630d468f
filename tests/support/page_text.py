"""The text of parts of the dashboard's page, which are Dash's components."""

from typing import Any


def text_of(part: Any) -> str:
    """Return all text in a part of the page."""
    if isinstance(part, list | tuple):
        return " ".join(map(text_of, part))
    return text_of(part.children) if hasattr(part, "children") else str(part or "")


def rows_of(region: Any) -> list[list[str]]:
    """Return the cells of a table's body."""
    _, _, body = region.children.children
    return [[text_of(cell) for cell in row.children] for row in body.children]
