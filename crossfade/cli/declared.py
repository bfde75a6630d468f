"""Make the options of a command from the declaration of its verb (``crossfade/base/options.py``).

add_options(parser, NeighborOptions)
options = read_options(parser.parse_args(), NeighborOptions)
"""

from __future__ import annotations

import argparse
from typing import Any, Literal, TypeVar, get_args, get_origin

from crossfade.base.options import Options, described, is_list, notes_of, plain_type, shown

Declared = TypeVar("Declared", bound=Options)


def add_options(parser: argparse.ArgumentParser, options: type[Options]) -> None:
    """Add an option to ``parser`` for each field of ``options``, in groups, in the order of the fields."""
    groups, notes = dict[str, argparse._ArgumentGroup](), notes_of(options)
    for name, field in options.model_fields.items():
        title = shown(field).group
        if title not in groups:
            groups[title] = parser.add_argument_group(title, notes.get(title))
        _add(groups[title], name, options)


def _add(group: argparse._ArgumentGroup, name: str, options: type[Options]) -> None:
    field = options.model_fields[name]
    face, kind = shown(field), plain_type(field.annotation)
    details: dict[str, Any] = {"help": described(field).replace("%", "%%"), "default": argparse.SUPPRESS}
    if kind is bool:
        details["action"] = "store_true" if field.default is False else argparse.BooleanOptionalAction
    else:
        element = plain_type(get_args(kind)[0]) if is_list(field) else kind
        choices = get_args(element) if get_origin(element) is Literal else ()
        details["metavar"] = face.value or ("{" + ",".join(map(str, choices)) + "}" if choices else name.upper())
    if face.without_value is not None:
        details |= {"nargs": "?", "const": face.without_value}
    if face.repeat:
        details["action"] = "append"
    elif is_list(field):
        details["nargs"], details["action"] = "*" if face.optional_values else "+", "extend"
    if face.positional:
        if not field.is_required():
            details["nargs"] = "*" if is_list(field) else "?"
        group.add_argument(name, **details)
        return
    long = f"--{name.rstrip('_').replace('_', '-')}"  # "json_": the class has a method json
    names = [*([f"-{face.short}"] if face.short else ()), long, *([f"--{face.also}"] if face.also else ())]
    group.add_argument(*names, dest=name, required=field.is_required(), **details)


def read_options(arguments: argparse.Namespace, options: type[Declared]) -> Declared:
    """Return the options that were typed.

    Raises:
        OptionError: one is invalid.
    """
    return options.of(**{name: value for name, value in vars(arguments).items() if name in options.model_fields})
