"""Make a command from the declaration of its options, in the form that all share; report errors in the words typed.

@as_command("validate", "Check a dataset.", examples=(...), notes="...")
def run(options: ValidateOptions) -> int: ...
"""

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from typing import Any, Generic, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from crossfade.base.errors import escape_unprintable
from crossfade.base.options import Options, described, is_list, notes_of, plain_type, shown

Declared = TypeVar("Declared", bound=Options)
Suggest = Callable[[str, str], str]
"""Returns what to type instead of an unknown option or word, given its value if it has one; empty if unknown."""

_VERY_SIMILAR = 0.8
_LIST = ",…"
"""The end of the metavariable of an option whose value is a list with commas."""


class CommandParser(argparse.ArgumentParser):
    """A parser that reports an error in one line, with the option that was probably meant."""

    def __init__(self, **options: Any) -> None:
        # Abbreviated options would turn into other options, or errors, as new ones are added.
        super().__init__(**options, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        self._words: Sequence[str] = ()
        self.suggest: Suggest = lambda word, value: ""
        """Gives the command's own advice about an unknown word; empty: it has none."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse ``args``; unlike the base class, end the process if one is unknown."""
        self._words = list(args or ())
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            advice = "" if unknown[0].startswith("-") else self._advice_on(unknown[0])
            suggestion = f"; {advice}" if advice else self._suggestion()
            self._fail(f"unrecognized arguments: {' '.join(unknown)}{suggestion}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Print ``message`` on stderr, and end the process with exit code 2."""
        for action in self._actions:
            if len(action.option_strings) > 1:  # argparse joins them
                message = message.replace("/".join(action.option_strings), self.word(action.dest))
        # A misspelled option is also reported as a missing one, if that is required.
        suggestion = ""
        if "required" in message:
            suggestion = self._suggestion("there is no {}: ") or self._taken_by_list()
        self._fail(f"{message}{suggestion}")

    def _fail(self, message: str) -> NoReturn:
        where = "" if "; " in message else f"; see '{self.prog} --help'"
        self.exit(2, f"{self.prog}: error: {escape_unprintable(message)}{where}\n")

    def _taken_by_list(self) -> str:
        """Return how to write a command whose first word was taken as a value of an option with several values."""
        words = [*self._words, "--"]
        for place in (place for place, word in enumerate(words) if word.startswith("-")):
            action = self._option_string_actions.get(words[place])
            values = list(takewhile(lambda word: not word.startswith("-"), words[place + 1 :]))
            if action is not None and action.nargs in ("+", "*") and len(values) > 1:
                others = [*self._words[: place + len(values)], *self._words[place + len(values) + 1 :]]
                typed = shlex.join([*self.prog.split(), values[-1], *others])
                return f"; {words[place]} takes all words that follow it, so write {typed}"
        return ""

    def _suggestion(self, named: str = "") -> str:
        """Suggest an option instead of the first unknown one, which ``named`` names if the message does not."""
        known = list(self._option_string_actions)
        for word, following in zip_longest(self._words, self._words[1:], fillvalue=""):
            option, _, value = word.partition("=")
            if option.startswith("--") and option not in known:
                longer = [name for name in known if len(option) > 3 and name.startswith(option)]
                if near := longer or difflib.get_close_matches(option, known, n=1, cutoff=_VERY_SIMILAR):
                    return f"; {named.format(option)}did you mean {near[0]}?"
                if advice := self.suggest(option, value or ("" if following.startswith("-") else following)):
                    return f"; {advice}"
                near = difflib.get_close_matches(option, known, n=1)
                return f"; {named.format(option)}did you mean {near[0]}?" if near else ""
        return ""

    def _advice_on(self, word: str) -> str:
        """Return how to give ``word``, which follows the value of an option, to that option; empty: unknown."""
        place = self._words.index(word) if word in self._words else 0
        at = max((index for index in range(place) if self._words[index].startswith("-")), default=-1)
        option, _, value = self._words[max(at, 0)].partition("=")
        action = self._option_string_actions.get(option)
        values = [value, *self._words[at + 1 :]][not value :]
        values = values[: next((index for index, other in enumerate(values) if other.startswith("-")), None)]
        if action is None or len(values) < 2:
            return self.suggest(word, "")
        if any(other.startswith("=") or other.endswith("=") for other in values):
            return f"write it without spaces: {option} {shlex.quote(''.join(values))}"
        if isinstance(action, argparse._AppendAction):
            return f"repeat the option: {' '.join(f'{option} {shlex.quote(other)}' for other in values)}"
        if _LIST in str(action.metavar):
            parts = (part for other in values for part in other.split(",") if part)
            return f"separate its values with commas: {option} {shlex.quote(','.join(parts))}"
        return self.suggest(word, "")

    def word(self, name: str, value: object = "") -> str:
        """Return the option ``name`` as it was typed or else as it is typed, with ``value``."""
        action = next((each for each in self._actions if each.dest == name), None)
        names = [f"--{name.replace('_', '-')}"] if action is None else action.option_strings
        typed = [each for each in names if any(_is_option(word, each) for word in self._words)]
        return " ".join(filter(None, [*(typed or names)[:1], str(value)])) or str(action and action.metavar)


def _is_option(word: str, name: str) -> bool:
    """Return whether ``word`` is the option ``name``, alone or with its value: ``--length=5``, ``-k5``."""
    return word.partition("=")[0] == name or (not name.startswith("--") and word.startswith(name))


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
        suggest: gives the command's own advice about unknown words.
        actions: the commands of a group, each with its line in their list, verb first.
        kind: what the commands of a group are called.
    """

    name: str
    description: str
    examples: Sequence[tuple[str, str]]
    notes: str = ""
    options: type[Declared] | None = None
    run: Callable[[Declared], int] | None = None
    suggest: Suggest | None = None
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
            if self.suggest is not None:
                parser.suggest = self.suggest
            elif "set" in options.model_fields:
                parser.suggest = _suggest_setting
        if self.actions:
            further = parser.add_subparsers(title=f"{self.kind}s", metavar=self.kind.upper(), required=True)
            for action, does in self.actions:
                action.add_to(further, does)


def as_command(
    name: str,
    description: str,
    examples: Sequence[tuple[str, str]],
    notes: str = "",
    suggest: Suggest | None = None,
) -> Callable[[Callable[[Declared], int]], Command[Declared]]:
    """Return a decorator that makes a ``Command`` of a function, with the options of its argument."""

    def decorate(run: Callable[[Declared], int]) -> Command[Declared]:
        return Command(name, description, examples, notes, get_type_hints(run)["options"], run, suggest)

    return decorate


def _suggest_setting(option: str, value: str) -> str:
    """Return how to set the key of a job whose last part is ``option``; empty: there is none."""
    from crossfade.trainer.config.json_schema import explain_fields

    keys = [key for key, *_ in explain_fields()]
    name = option.removeprefix("--").replace("-", "_")
    found = [key for key in keys if name in (key, key.rpartition(".")[2])]
    return f"use {' or '.join(f'--set {key}={value}' for key in found)}" if found and option.startswith("--") else ""
