"""Make a command from the declaration of its options, in the form that all share; report errors in the words typed.

@as_command("validate", "Check a dataset.", examples=(...), notes="...")
def run(options: ValidateOptions) -> int: ...
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from crossfade.base.errors import as_typed, escape_unprintable
from crossfade.base.options import Options, described, is_list, notes_of, plain_type, shown

Declared = TypeVar("Declared", bound=Options)


class CommandParser(argparse.ArgumentParser):
    """A parser that reports an error in one line, with the option that was probably meant."""

    def __init__(self, **options: Any) -> None:
        # Abbreviated options would turn into other options, or errors, as new ones are added.
        super().__init__(**options, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse ``args``; unlike the base class, end the process if one is unknown."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            near = difflib.get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            if not hint and "--set" in self._option_string_actions:
                hint = "; set keys of a job by --set KEY=VALUE"
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Print ``message`` on stderr, and end the process with exit code 2."""
        self.exit(2, f"{self.prog}: error: {escape_unprintable(message)}; see '{self.prog} --help'\n")

    def word(self, name: str, value: object = "") -> str:
        """Return the option ``name`` as it is typed, with ``value``."""
        action = next((each for each in self._actions if each.dest == name), None)
        if action is None:
            return as_typed(name, value)
        return " ".join(filter(None, [*action.option_strings[:1], str(value)])) or str(action.metavar)


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
    names = [*([f"--{face.also}"] if face.also else ()), *([f"-{face.short}"] if face.short else ()), long]
    group.add_argument(*names, dest=name, required=field.is_required(), **details)


def read_options(arguments: argparse.Namespace, options: type[Declared]) -> Declared:
    """Return the options that were typed.

    Raises:
        OptionError: one is invalid.
    """
    return options.of(**{name: value for name, value in vars(arguments).items() if name in options.model_fields})


@dataclass(frozen=True)
class Command(Generic[Declared]):
    """A command, or a group of further commands.

    Attributes:
        name: the word after ``crossfade``, or after the group.
        description: what ``--help`` opens with: one sentence, then details.
        examples: command lines, each with what it does.
        notes: paragraphs that follow the examples.
        options: the declaration of the command's options; None for a group.
        run: does it, and returns the exit code; None for a group.
        actions: the commands of a group, each with its line in their list, verb first.
        kind: what the commands of a group are called.
    """

    name: str
    description: str
    examples: Sequence[tuple[str, str]]
    notes: str = ""
    options: type[Declared] | None = None
    run: Callable[[Declared], int] | None = None
    actions: Sequence[tuple[Command[Any], str]] = ()
    kind: str = "action"

    def add_to(self, commands: argparse._SubParsersAction[CommandParser], summary: str | None) -> None:
        """Add the command to those of a parser, which ``add_subparsers`` returned; None leaves it out of their list."""
        lines = [line for command, effect in self.examples for line in (f"  {command}", f"      {effect}")]
        shown: dict[str, Any] = {} if summary is None else {"help": summary}
        parser = commands.add_parser(
            self.name,
            description=self.description,
            epilog="\n".join(["Examples:", *lines, *(["", self.notes.strip("\n")] if self.notes else [])]),
            **shown,
        )
        parser.set_defaults(parser=parser)
        options, run = self.options, self.run
        if options is not None and run is not None:
            add_options(parser, options)
            parser.set_defaults(run=lambda arguments: run(read_options(arguments, options)))
        if self.actions:
            further = parser.add_subparsers(title=f"{self.kind}s", metavar=self.kind.upper(), required=True)
            for action, does in self.actions:
                action.add_to(further, does)


def as_command(
    name: str,
    description: str,
    examples: Sequence[tuple[str, str]],
    notes: str = "",
) -> Callable[[Callable[[Declared], int]], Command[Declared]]:
    """Return a decorator that makes a ``Command`` of a function, with the options of its argument."""

    def decorate(run: Callable[[Declared], int]) -> Command[Declared]:
        return Command(name, description, examples, notes, get_type_hints(run)["options"], run)

    return decorate
