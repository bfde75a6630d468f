"""Values of the options of ``prepare`` that have a form as text, such as ``customer=user_id`` and ``track=5,artist=3``.

Each type accepts its form as text, given once or several times, and the value itself.
"""

from __future__ import annotations

import codecs
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ValidationInfo

from crossfade.base.errors import OptionError, Text
from crossfade.base.options import parse_share
from crossfade.trainer.data.time_values import TimeSpan

ALL = "*"
"""Stands for both entities where a span is given for each entity."""
HOUR, WEEKDAY, PREVIOUS = "timestamp:hour", "timestamp:weekday", "timestamp:previous"
DERIVED_CONTEXT = (HOUR, WEEKDAY, PREVIOUS)
"""What context may be derived from the times of events (``event_context.py``)."""
MAX_REPLAY = 100
"""The most interactions of base datasets for each new one."""
_FLOAT_MAX = 3.4028234663852886e38

Value = TypeVar("Value")


@dataclass(frozen=True)
class EntityColumn:
    """An entity and, if it has another name, the column of its IDs."""

    name: str
    given: str | None = None

    @property
    def column(self) -> str:
        """The column of the IDs."""
        return self.given or self.name

    @staticmethod
    def parse(text: object) -> EntityColumn:
        """Parse ``NAME`` or ``NAME=COLUMN``.

        Raises:
            ValueError: it has neither form.
        """
        if isinstance(text, EntityColumn):
            return text
        if not isinstance(text, str) or not text:
            raise ValueError("expected the name of a column, or NAME=COLUMN")
        name, _, column = text.partition("=")
        return EntityColumn(name, column or None)


@dataclass(frozen=True)
class NamesFile:
    """A Parquet, CSV or TSV file (by its extension) with names of IDs; of several names of an ID, the first is used."""

    path: str | Path
    id_column: str
    name_column: str

    @staticmethod
    def parse(text: object) -> NamesFile:
        """Parse ``FILE:ID_COLUMN:NAME_COLUMN``.

        Raises:
            ValueError: the text has another form.
        """
        if isinstance(text, NamesFile):
            return text
        parts = str(text).rsplit(":", 2)
        if len(parts) != 3 or not all(parts):
            raise ValueError(text)
        return NamesFile(*parts)


@dataclass(frozen=True)
class FeatureFile:
    """Files (a path, URI or pattern) with features of the IDs of ``entity`` in ``id_column``.

    ``columns`` maps the name of each feature to the column of its values.
    """

    entity: str
    path: str | Path
    id_column: str
    columns: Mapping[str, str]

    @staticmethod
    def parse(text: object) -> object:
        """Parse ``ENTITY=FILE:ID_COLUMN:[NAME=]COLUMN[,[NAME=]COLUMN…]``.

        Raises:
            ValueError: the text has another form, or a feature has two columns.
        """
        if not isinstance(text, str):
            return text
        entity, _, rest = text.partition("=")
        parts = rest.rsplit(":", 2)
        if not entity or len(parts) != 3 or not all(parts):
            raise ValueError(
                "expected ENTITY=FILE:ID_COLUMN:COLUMN[,COLUMN…], as in track=songs.parquet:id:artist,tag=tags"
            )
        columns: dict[str, str] = {}
        for part in parts[2].split(","):
            name, equals, column = part.partition("=")
            if not name or name in columns or (equals and not column):
                raise ValueError(f"'{part}' is not COLUMN or NAME=COLUMN, each name once; expected artist,tag=tags")
            columns[name] = column or name
        return FeatureFile(entity, parts[0], parts[1], columns)


@dataclass(frozen=True)
class ContextPlan:
    """One context entity to prepare: the ``number`` of its table, its ``name``, and what its values are from."""

    number: int
    name: str
    source: str

    @property
    def key(self) -> str:
        """The role of its column, and the suffix of its tables in the working database."""
        return f"context_{self.number}"

    @property
    def is_derived(self) -> bool:
        """Whether values are derived from timestamps, rather than read from a column."""
        return self.source in DERIVED_CONTEXT

    def error(self, problem: Text, fix: Text) -> OptionError:
        """Return the error that the context has ``problem``."""
        return OptionError("context", found=self, problem=problem, fix=fix)

    def __str__(self) -> str:
        """Format the value of the option as the user would type it."""
        return f"{self.name}={self.source}"


def _by_name(
    read: Callable[[Any], Value], expected: str, *, commas: bool = True, last_equals: bool = False
) -> BeforeValidator:
    """Return a validator of a mapping, or of its form as text, ``NAME=VALUE[,NAME=VALUE…]``, once or several times.

    Args:
        read: returns a value, given its text or itself; ValueError if it is none.
        expected: what is expected of each entry.
        commas: whether a text may have several entries.
        last_equals: whether names may contain an equals sign.
    """

    def validate(given: object, info: ValidationInfo) -> dict[str, Value]:
        entries: dict[str, Value] = {}
        for text, name, value in _entries(given, commas, last_equals):
            try:
                if not name or name in entries or value == "":
                    raise ValueError(text)
                entries[name] = read(value)
            except (TypeError, ValueError):
                raise OptionError(str(info.field_name), found=text, expected=expected) from None
        return entries

    return BeforeValidator(validate)


def _entries(given: object, commas: bool, last_equals: bool) -> Iterable[tuple[str, str, Any]]:
    """Return text, name, and value of each entry of ``given``, a mapping or its form as text."""
    if isinstance(given, Mapping):
        return [(str(value) if name == ALL else f"{name}={value}", name, value) for name, value in given.items()]
    texts = [str(text) for text in given] if isinstance(given, list | tuple) else [str(given)]
    parts = [part for text in texts for part in (text.split(",") if commas else [text])]
    split = [part.rpartition("=") if last_equals else part.partition("=") for part in parts]
    return [(part, name, value) for part, (name, _, value) in zip(parts, split, strict=True)]


def _count(value: object) -> int:
    if not str(value).isdecimal() or int(str(value)) < 1:
        raise ValueError(value)
    return int(str(value))


def _weight(value: object) -> float:
    weight = float(str(value))
    if not math.isfinite(weight) or abs(weight) > _FLOAT_MAX:
        raise ValueError(value)
    return weight


def _of_all(value: object) -> object:
    """Return ``SPAN``, which is of both entities, as an entry without the name of an entity."""
    return {ALL: value} if isinstance(value, str) and "=" not in value else value


def _span(value: object) -> TimeSpan:
    try:
        return TimeSpan.parse(value)
    except ValueError:
        raise ValueError("expected days or hours, as in 1d or 2h, or an integer from 1") from None


def _path_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _delimiter(value: object) -> object:
    value = "\t" if value == "\\t" else value
    if isinstance(value, str) and (len(value) != 1 or not value.isascii() or value in '\0"\r\n'):
        raise ValueError("expected one ASCII character other than a quote, or \\t for a tab")
    return value


def _encoding(value: object) -> str:
    try:
        name = codecs.lookup(str(value)).name
        is_text = "a,1\n".encode(name).decode(name) == "a,1\n"
    except (LookupError, ValueError):
        is_text = False
    if not is_text:
        raise ValueError("expected an encoding of text that Python knows, such as latin-1, cp1252, or utf-16")
    return name


def _replay_share(value: object) -> object:
    share = parse_share(value)
    if not 0 < share <= MAX_REPLAY:
        raise ValueError(f"expected a share above 0: 0.5 or 50%, at most {MAX_REPLAY} or {MAX_REPLAY:.0%}")
    return share


Location = Annotated[str, BeforeValidator(_path_text)]
"""A path, a URI, or a pattern, as text or as a ``Path``."""
Minimums = Annotated[
    Mapping[str, int], _by_name(_count, "ENTITY=K, each entity once, K from 1, as in customer=5,track=10")
]
Weights = Annotated[
    Mapping[str, float],
    _by_name(
        _weight, "EVENT=NUMBER, each event once, the number finite in 32 bits, as in play=1,skip=-1", last_equals=True
    ),
]
Context = Annotated[
    Mapping[str, str], _by_name(str, "NAME=COLUMN, each name once, as in hour=timestamp:hour", commas=False)
]
Spans = Annotated[
    Mapping[str, TimeSpan],
    _by_name(
        TimeSpan.parse, "days or hours, as in 90d or 36h, or an integer from 1, or ENTITY=SPAN for each entity once"
    ),
    BeforeValidator(_of_all),
]
Span = Annotated[TimeSpan, BeforeValidator(_span)]
Names = Annotated[
    Mapping[str, NamesFile],
    _by_name(
        NamesFile.parse,
        "ENTITY=FILE:ID_COLUMN:NAME_COLUMN, each entity once, as in track=songs.csv:id:title",
        commas=False,
    ),
]
Features = tuple[Annotated[FeatureFile, BeforeValidator(FeatureFile.parse)], ...]
Entity = Annotated[EntityColumn, BeforeValidator(EntityColumn.parse)]
Delimiter = Annotated[str | None, BeforeValidator(_delimiter)]
Encoding = Annotated[str, BeforeValidator(_encoding)]
"""The name that Python gives an encoding."""
ReplayShare = Annotated[float, BeforeValidator(_replay_share)]
"""A fraction or a percentage as text, also above 1."""
