"""Write reference pages in Markdown from the code that they describe, so that they cannot differ from it."""

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

import crossfade
from crossfade.base.options import expected, is_list, plain_type, shown
from crossfade.cli.command import Command
from crossfade.cli.main import COMMANDS, load_command, make_parser
from crossfade.deploy.serving import schemas
from crossfade.trainer.config.json_schema import explain_fields
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.monitoring.names import ALL, GROUPS
from crossfade.trainer.runs.events import EVENT_TYPES

_COLUMNS = "100"


def commands_page() -> str:
    """Return a page with the help of every command, as ``crossfade COMMAND --help`` prints it."""
    os.environ["COLUMNS"] = _COLUMNS  # argparse wraps at the terminal's width
    lines = ["# Commands", "", "What `crossfade COMMAND --help` prints.", ""]
    for words, parser in _commands(make_parser()):
        lines += [
            f"{'#' * (len(words) + 1)} crossfade {' '.join(words)}",
            "",
            "```text",
            parser.format_help(),
            "```",
            "",
        ]
    return "\n".join(lines)


def _commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield (*words, name), command
                yield from _commands(command, (*words, name))


_OPTIONS = """\
# Options

What each option takes, on the command line, in Python, and over HTTP, from the declarations that all three are made of.
"""
_FUNCTIONS = (
    crossfade.load,
    crossfade.Model.recommend,
    crossfade.Model.similar,
    crossfade.Model.evaluate,
)
_REQUESTS = {
    "GET /recommend": schemas.RecommendQuery,
    "POST /recommend with ids": schemas.KnownRequest,
    "POST /recommend with histories": schemas.NewRequest,
    "GET /similar": schemas.SimilarQuery,
    "POST /similar": schemas.SimilarRequest,
    "GET /vector": schemas.RowQuery,
}


def options_page() -> str:
    """Return a page with the types, defaults, and limits of all options."""
    tables = [*_of_commands(map(load_command, COMMANDS), "crossfade")]
    tables += [(f"crossfade.{each.__qualname__}", each.declared, False) for each in _FUNCTIONS]
    tables += [(route, request.model_fields, False) for route, request in _REQUESTS.items()]
    lines = [_OPTIONS]
    for title, fields, is_typed in tables:
        rows = (_option_row(name, field, is_typed) for name, field in fields.items())
        lines += [f"## {title}", "", "| option | value | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _of_commands(commands: Iterable[Command[Any]], words: str) -> Iterator[tuple[str, Mapping[str, FieldInfo], bool]]:
    for command in commands:
        name = f"{words} {command.name}"
        if command.options is not None:
            yield name, command.options.model_fields, True
        yield from _of_commands((action for action, _ in command.actions), name)


def _option_row(name: str, field: FieldInfo, is_typed: bool) -> str:
    """Return the row of an option, by its name or, if ``is_typed``, as the command line takes it."""
    face, value = shown(field), expected(field)
    if is_list(field):
        value = "values" if (each := expected(field, inner=True)) == "another value" else f"values, each {each}"
    elif face.value and value in ("another value", "a dictionary"):
        value = f"`{face.value}`"
    elif value == "another value":
        value = f"an object of {', '.join(getattr(plain_type(field.annotation), 'model_fields', ()))}"
    if is_typed:
        name = face.value or name.upper() if face.positional else f"--{name.rstrip('_').replace('_', '-')}"
    default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
    cells = (f"`{name}`", value, default, field.description or "")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def python_page() -> str:
    """Return a page with a directive of mkdocstrings for every public name of the package."""
    names = (f"::: crossfade.{name}\n" for name in sorted(crossfade.__all__) if not name.startswith("_"))
    return "\n".join(["# Python reference\n", *names])


def job_keys() -> str:
    """Describe all keys of a job file, one table per section."""
    return "\n".join(["# Configuration\n", *_job_keys()]) + "\n"


def _job_keys() -> Iterator[str]:
    sections: dict[str, list[tuple[str, str, str, str]]] = {}
    for field in explain_fields():
        sections.setdefault(field[0].rpartition(".")[0], []).append(field)
    for section, fields in sections.items():
        named = [part for part in section.split(".") if part]
        model = JobConfig
        for part in named:
            model = model.model_fields[part].annotation  # type: ignore[assignment]
        yield from ([f"## {section}", ""] if named else ["## Job", ""])
        yield from [str(model.__doc__).splitlines()[0], "", "| key | type | default | meaning |", "|---|---|---|---|"]
        for key, kind, default, meaning in fields:
            cells = (f"`{key}`", kind, default if default == "required" else f"`{default}`", meaning)
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        yield ""


def events_markdown() -> str:
    """Describe every event and its fields, a table for each kind."""
    sections = ["# Events"]
    for kind, event in EVENT_TYPES.items():
        types = get_type_hints(event)
        rows = [
            f"| `{name}` | {_type_name(types[name])} | {field.description} |"
            for name, field in event.model_fields.items()
        ]
        header = [f"## `{kind}`", "", event.__doc__ or "", "", "| Field | Type | Meaning |", "| --- | --- | --- |"]
        sections.append("\n".join([*header, *rows]))
    return "\n\n".join(sections) + "\n"


def metrics_markdown() -> str:
    """Describe every metric of the catalog in a table."""
    rows = [
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.unit} | "
        f"{GROUPS[each.group]} | {each.description} |"
        for each in ALL
    ]
    head = ["# Metrics", "", "| name | type | labels | unit | process | meaning |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


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
