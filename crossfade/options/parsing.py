"""Reading the values of ``crossfade prepare``'s options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from kvstore.errors import InputError

if TYPE_CHECKING:
    from trainer.prepare.admission import MaxAge
    from trainer.prepare.features import FeatureFile
    from trainer.prepare.synthetic import SyntheticSpec
    from trainer.prepare.vocabulary_tables import NamesFile


def split_pair(text: str) -> tuple[str, str | None]:
    """``NAME=COLUMN`` as name and column, ``NAME`` as name and None."""
    name, separator, column = text.partition("=")
    return name, column if separator else None


def parse_event_weights(text: str | None) -> dict[str, float]:
    """Read ``play=1,like=3,skip=-1``.

    Raises:
        InputError: it is of another form.
    """
    weights: dict[str, float] = {}
    for part in text.split(",") if text is not None else ():
        event, _, weight = part.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            event = ""
        if not event or event in weights:
            raise InputError(
                f"--event-weights {text}: '{part}' is not EVENT=NUMBER, each event once; expected play=1,skip=-1"
            )
        weights[event] = value
    return weights


def parse_minimums(option: str, texts: Sequence[str]) -> dict[str, int]:
    """Read ``ENTITY=K[,ENTITY=K…]``, once for each entity, which were given with ``option``.

    Raises:
        InputError: one is of another form.
    """
    minimums: dict[str, int] = {}
    for text in [part for parts in texts for part in parts.split(",")]:
        entity, _, number = text.partition("=")
        if not entity or not number.isdecimal() or entity in minimums:
            raise InputError(f"{option} {text}: expected ENTITY=K, each entity once, such as customer=5 track=10")
        minimums[entity] = int(number)
    return minimums


def parse_spans(text: str | None, entities: Sequence[str]) -> dict[str, MaxAge]:
    """Read ``SPAN``, which is for all ``entities``, or ``ENTITY=SPAN[,ENTITY=SPAN…]``.

    Raises:
        InputError: it is of another form.
    """
    from trainer.prepare.admission import MaxAge

    if text is None:
        return {}
    if "=" not in text:
        return dict.fromkeys(entities, MaxAge.parse(text))
    spans: dict[str, MaxAge] = {}
    for part in text.split(","):
        entity, _, span = part.partition("=")
        if not entity or entity in spans:
            raise InputError(f"--expire-after {text}: expected 90d, or ENTITY=90d for each entity, once")
        spans[entity] = MaxAge.parse(span)
    return spans


def parse_names(texts: Sequence[str]) -> dict[str, NamesFile]:
    """Read ``ENTITY=FILE:ID_COLUMN:NAME_COLUMN``, once for each entity.

    Raises:
        InputError: one is of another form.
    """
    from trainer.prepare.vocabulary_tables import NamesFile

    names: dict[str, NamesFile] = {}
    for text in texts:
        entity, _, rest = text.partition("=")
        parts = rest.rsplit(":", 2)
        if not entity or len(parts) != 3 or not all(parts):
            raise InputError(
                f"--names {text}: expected ENTITY=FILE:ID_COLUMN:NAME_COLUMN, as in track=songs.csv:id:title"
            )
        if entity in names:
            raise InputError(f"--names {text}: '{entity}' has a names file already; expected one for each entity")
        names[entity] = NamesFile(*parts)
    return names


def parse_features(texts: Sequence[str]) -> list[FeatureFile]:
    """Read ``ENTITY=FILE:ID_COLUMN:[NAME=]COLUMN[,[NAME=]COLUMN…]``.

    Raises:
        InputError: one is of another form, or a feature has two columns.
    """
    from trainer.prepare.features import FeatureFile

    files = []
    for text in texts:
        entity, _, rest = text.partition("=")
        parts = rest.rsplit(":", 2)
        if not entity or len(parts) != 3 or not all(parts):
            raise InputError(
                f"--features {text}: expected ENTITY=FILE:ID_COLUMN:COLUMN[,COLUMN…], as in "
                "track=songs.parquet:id:artist,tag=tags"
            )
        columns: dict[str, str] = {}
        for column in parts[2].split(","):
            name, of_file = split_pair(column)
            if not name or of_file == "" or name in columns:
                raise InputError(
                    f"--features {text}: '{column}' is not COLUMN or NAME=COLUMN, each name once; expected "
                    "artist,tag=tags"
                )
            columns[name] = of_file or name
        files.append(FeatureFile(entity, parts[0], parts[1], columns))
    return files


def parse_synthetic(text: str, query: str, item: str) -> SyntheticSpec:
    """Read ``queries=1000,items=500,…``; numbers may be written 1_000_000 or 1e6.

    Raises:
        InputError: a key is unknown, or a value no number.
    """
    from trainer.prepare.synthetic import SyntheticSpec

    kinds = {field.name: field.type for field in fields(SyntheticSpec) if field.type in ("int", "float")}
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key not in kinds or key in values:
            raise InputError(
                f"--synthetic {text}: '{part}' is not KEY=NUMBER; the keys, each once, are: {', '.join(kinds)}"
            )
        try:
            number = float(value)
            values[key] = int(number) if kinds[key] == "int" and number.is_integer() else number
        except (ValueError, OverflowError):
            raise InputError(f"--synthetic {key}={value}: '{value}' is not a number; write it as 1000 or 1e3") from None
        if kinds[key] == "int" and not isinstance(values[key], int):
            raise InputError(f"--synthetic {key}={value}: expected a whole number")
    return SyntheticSpec(**values, query=query, item=item)
