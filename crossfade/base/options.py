"""Declare the options of a verb once, for every face.

    class NeighborOptions(Options):
        k: Integer = option(8, "list N neighbors of each row", value="N", short="k", ge=1)

    options = NeighborOptions.of(k="5")         # from a command line, Python, or JSON; OptionError if it is invalid

The command line has an option for each field (``crossfade/cli/command.py``), Python a keyword argument
(``crossfade/api/arguments.py``), a request of HTTP a key, and the reference a row.
"""

from __future__ import annotations

import math
import operator
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from crossfade.base.errors import Option, OptionError, Text, join, worded
from crossfade.base.text import similar_name

_KINDS: Mapping[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "a path",
    bool: "true or false",
    dict: "a dictionary",
}
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|(s3|gs|https?|file):/")
"""How addresses such as ``s3://music`` begin, or what a ``Path`` has made of the usual ones."""


@dataclass(frozen=True)
class Shown:
    """How an option is shown where people read about it.

    Attributes:
        group: the heading of the options that belong together.
        value: the word for its value, such as DIR; empty: none, or the choices.
        short: a letter for the command line.
        also: another name on the command line.
        positional: whether the command line takes it without a name.
        repeat: whether the command line takes one value at a time, and the option several times.
        optional_values: whether the command line takes the option without any value, for an empty list.
        without_value: what the option means on the command line if no value follows it; None: it needs one.
    """

    group: str = "options"
    value: str = ""
    short: str = ""
    also: str = ""
    positional: bool = False
    repeat: bool = False
    optional_values: bool = False
    without_value: Any = None


_SHOWN = {field.name for field in fields(Shown)}


def option(default: Any, description: str, **settings: Any) -> Any:
    """Return a field of ``Options``; ``...`` as ``default`` makes it required.

    Args:
        default: the value if none is given; it is shown after the description, which may state it in other words.
        description: what the option does, verb first.
        settings: the attributes of ``Shown``, and pydantic's constraints, such as ``ge=1``.
    """
    limits = {name: value for name, value in settings.items() if name not in _SHOWN}
    field: Any = Field(default, description=description, **limits)
    field.metadata.append(Shown(**{name: value for name, value in settings.items() if name in _SHOWN}))
    return field


class Options(BaseModel):
    """The options of a verb: frozen, without unknown names, each with a description."""

    # Validators are built when they are first used: most commands use those of one class.
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, defer_build=True)

    group_notes: ClassVar[Mapping[str, str]] = {}
    """What is said below the heading of a group; ``notes_of`` adds those of base classes."""
    one_of: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Options of which exactly one must be given."""
    at_most_one: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Options of which only one may be given, beside the lists of base classes."""

    @model_validator(mode="before")
    @classmethod
    def _prepare_values(cls, values: Any) -> Any:
        """Accept one value where a list is expected: ``exclude="train"``. Reject an address in place of a local path.

        Raises:
            OptionError: there is one.
        """
        if not isinstance(values, Mapping):
            return values
        found = dict(values)
        for name, takes_list, is_path in _kinds(cls):
            value = values.get(name)
            if takes_list and isinstance(value, str | Path | Integral):
                found[name] = value = (value,)
            if is_path and value is not None:
                for each in value if takes_list and isinstance(value, Iterable) else (value,):
                    if isinstance(each, str | Path) and _ADDRESS.match(str(each)):
                        raise OptionError(name, found=each, expected="a local path")
        return found

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Return the options with ``values``, which may be texts where other types have a form as text.

        Raises:
            OptionError: a name is unknown, a value is invalid, or options contradict each other.
        """
        at_most_one = [names for kind in cls.__mro__ for names in vars(kind).get("at_most_one", ())]
        for names in (*cls.one_of, *at_most_one):
            found = [name for name in names if values.get(name) not in (None, False)]
            if len(found) > 1 or (not found and names in cls.one_of):
                first = found[1] if found else names[0]
                problem = ("was given, and so was ", Option(found[0])) if found else ""
                raise OptionError(first, problem=problem, expected=("one of ", alternatives(map(Option, names))))
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise option_error(cls, error, values) from None


@cache
def _kinds(options: type[Options]) -> list[tuple[str, bool, bool]]:
    """Return the names of the fields that are lists or paths, and whether they are the one and the other."""
    kinds = [(name, is_list(field), _element(field) is Path) for name, field in options.model_fields.items()]
    return [kind for kind in kinds if any(kind[1:])]


def notes_of(options: type[Options]) -> dict[str, str]:
    """Return the notes of ``options`` by group: a class may replace those of its base classes."""
    return {
        group: note for kind in reversed(options.__mro__) for group, note in vars(kind).get("group_notes", {}).items()
    }


def shown(field: FieldInfo) -> Shown:
    """Return how ``field`` is shown."""
    return next((entry for entry in field.metadata if isinstance(entry, Shown)), Shown())


def described(field: FieldInfo) -> str:
    """Return the description of ``field``, with its default unless the description states it."""
    text = field.description or ""
    if field.is_required() or field.default in (None, False, "", (), {}) or "default" in text:
        return text
    default = f"{field.default:g}" if isinstance(field.default, float) else field.default
    return f"{text} (default: {default})"


def option_error(options: type[BaseModel], error: ValidationError, values: Mapping[str, Any]) -> OptionError:
    """Return the first problem in ``error``, of ``values`` for ``options``."""
    problem = error.errors(include_url=False)[0]
    name, *inside = problem["loc"]
    name, place = str(name), [part for part in inside if isinstance(part, int)][:1]
    if problem["type"] == "extra_forbidden":
        return OptionError(name, problem="is unknown", fix=_suggestion(name, options.model_fields, "one of "))
    field, found = options.model_fields[name], values.get(name)
    if problem["type"] == "missing":
        return OptionError(name, problem="is missing", fix=field.description or "")
    if place and isinstance(found, Sequence) and not isinstance(found, str):
        found = found[place[0]]
    if problem["type"] == "value_error":
        return OptionError((name, *place), found=found, problem=str(problem["ctx"]["error"]))
    if problem["type"] == "literal_error" and isinstance(found, str):
        choices = get_args(_element(field))
        return OptionError((name, *place), found=found, problem=_suggestion(found, choices, ""))
    return OptionError((name, *place), found=found, expected=expected(field, inner=bool(place)))


def _suggestion(name: str, known: Iterable[str], of: str) -> str:
    near = similar_name(name, known)
    return f"did you mean {near}?" if near else f"expected {of}{worded(alternatives(known))}"


def alternatives(names: Iterable[object]) -> Text:
    """Return ``names`` joined with commas and 'or': options, or what is shown as text."""
    *others, last = (name if isinstance(name, Option) else str(name) for name in names)
    return (join(others, ", "), "," if len(others) > 1 else "", " or ", last) if others else last


def _element(field: FieldInfo) -> Any:
    """Return the type of ``field`` or, for a list, of one of its values."""
    kind = plain_type(field.annotation)
    return plain_type(get_args(kind)[0]) if get_origin(kind) in (tuple, list) else kind


def expected(field: FieldInfo, *, inner: bool = False) -> str:
    """Return what is expected of a value of ``field``, or of one of its values, such as 'an integer from 1'."""
    kind = _element(field) if inner else plain_type(field.annotation)
    if get_origin(kind) is Literal:
        return worded(alternatives(get_args(kind)))
    if is_list(field) and not inner:
        return "a list of values"
    words = _KINDS.get(get_origin(kind) or kind, "another value")
    limits = get_args(get_args(plain_type(field.annotation))[0])[1:] if inner else _limits(field)
    low = next((entry for entry in limits if isinstance(entry, Ge | Gt)), None)
    high = next((entry for entry in limits if isinstance(entry, Le | Lt)), None)
    if low is not None:
        words += f" from {low.ge}" if isinstance(low, Ge) else f" above {low.gt}"
    if high is not None:
        most = "to" if isinstance(low, Ge) else "of at most" if low is None else "and at most"
        words += f" {most} {high.le}" if isinstance(high, Le) else f" below {high.lt}"
    return words


def _limits(field: FieldInfo) -> list[Any]:
    """Return the constraints of ``field``, with those of the type that it has unless it is None."""
    inner = [entry for kind in get_args(field.annotation) for entry in get_args(kind)[1:]]
    return [*field.metadata, *(part for entry in inner for part in getattr(entry, "metadata", ()) or (entry,))]


def plain_type(annotation: Any) -> Any:
    """Return ``annotation`` without ``Annotated`` and without None as an alternative."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        others = [kind for kind in get_args(annotation) if kind is not type(None)]
        if len(others) == 1:
            return plain_type(others[0])
    return annotation


def is_list(field: FieldInfo) -> bool:
    """Return whether a value of ``field`` is a sequence of values of one type."""
    kind = plain_type(field.annotation)
    return get_origin(kind) is list or (get_origin(kind) is tuple and get_args(kind)[-1] is ...)


def _integer(value: object) -> object:
    """Return ``value``, a number or text such as 1_000_000 or 1e6, as an integer, unless it is none."""
    if isinstance(value, str):
        for read in (int, float):  # a float would round large integers
            try:
                number = read(value)
            except ValueError:
                continue
            return int(number) if number == number // 1 else value
        return value
    if isinstance(value, bool):
        return str(value)  # which pydantic rejects
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return str(value) if isinstance(value, float) else value


def _number(value: object) -> object:
    """Return ``value``, a number or its text, as a float, unless it is none or not finite."""
    if isinstance(value, bool):
        return str(value)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return value
    return number if math.isfinite(number) else str(value)


def parse_share(value: object) -> float:
    """Return ``value``, a number, its text, or a percentage, as a number; NaN if it is none."""
    text = str(value).strip()
    try:
        return math.nan if isinstance(value, bool) else float(text.removesuffix("%")) / (100 if text[-1:] == "%" else 1)
    except ValueError:
        return math.nan


def _share(value: object) -> object:
    share = parse_share(value)
    if not 0 <= share <= 1:
        raise ValueError("expected a share: 0.1 or 10%, at most 1 or 100%")
    return share


def _port_or_none(value: Any) -> Any:
    """Return ``value`` of a port, None for the text none."""
    if value in (None, "none"):
        return None
    if not str(value).isdecimal() or int(value) > 65535:
        raise ValueError("expected a port or none")
    return int(value)


Integer = Annotated[int, BeforeValidator(_integer)]
"""An integer, also written 1_000_000 or 1e6; not a truth value, and not a fraction."""
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
"""A finite number; not a truth value."""
Port = Annotated[int, Field(ge=0, le=65535), BeforeValidator(_integer)]
"""A number of a port; 0: a free one."""
PortOrNone = Annotated[Port | None, BeforeValidator(_port_or_none)]
"""A number of a port, or the text none."""
Share = Annotated[float, BeforeValidator(_share)]
"""A fraction, or a percentage as text: 0.1, or 10%."""
