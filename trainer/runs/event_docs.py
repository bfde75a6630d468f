"""Describe the events of a run in Markdown, for docs/events.md."""

from __future__ import annotations

from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from crossfade.trainer.runs.events import EVENT_TYPES


def events_markdown() -> str:
    """Describe every event and its fields in Markdown: the generated part of the page."""
    sections = []
    for kind, event in EVENT_TYPES.items():
        types = get_type_hints(event)
        rows = [
            f"| `{name}` | {_type_name(types[name])} | {field.description} |"
            for name, field in event.model_fields.items()
        ]
        header = [f"### `{kind}`", "", event.__doc__ or "", "", "| Field | Type | Meaning |", "| --- | --- | --- |"]
        sections.append("\n".join([*header, *rows]))
    return "\n\n".join(sections) + "\n"


def _joined_by_bars(annotation: Any) -> Any:
    """Return ``annotation`` with ``|`` in place of ``Union``, which constraints turn it into."""
    parts = [_joined_by_bars(part) for part in get_args(annotation)]
    if get_origin(annotation) in (Union, UnionType):
        return reduce(or_, parts)
    return annotation.__origin__[*parts] if parts and get_origin(annotation) is dict else annotation


def _type_name(annotation: Any) -> str:
    annotation = _joined_by_bars(annotation)
    name = annotation.__name__ if type(annotation) is type else str(annotation).replace("typing.", "")
    optional = name.endswith(" | None")
    # A vertical bar would end the cell of the table.
    name = name.removesuffix(" | None").replace("int | float", "number")
    return f"`{name}`, optional" if optional else f"`{name}`"
