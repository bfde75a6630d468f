"""Parse option values: event weights, minimum counts, time spans, files of names and features, bad lines, numbers."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.errors import InputError

if TYPE_CHECKING:
    from crossfade.trainer.prepare.admission import MaxAge
    from crossfade.trainer.prepare.features import FeatureFile
    from crossfade.trainer.prepare.options import OnBadLine, OnMissing
    from crossfade.trainer.prepare.vocabulary_tables import NamesFile


def split_pair(text: str) -> tuple[str, str | None]:
    """Split ``NAME=COLUMN`` into name and column, ``NAME`` into name and None."""
    name, separator, column = text.partition("=")
    return name, column if separator else None


def parse_event_weights(text: str | None) -> dict[str, float]:
    """Read ``play=1,like=3,skip=-1``.

    Raises:
        InputError: the text has another form.
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


def parse_on_bad_line(text: str | None) -> tuple[OnBadLine, Path | None]:
    """Read ``fail``, ``skip`` (also ``drop``) or ``quarantine=FILE``; return what to do, and the file.

    Raises:
        InputError: the text has another form.
    """
    if text in (None, "fail"):
        return "fail", None
    if text in ("skip", "drop"):
        return "skip", None
    action, file = split_pair(text or "")
    if action == "quarantine" and file:
        return "skip", Path(file)
    raise InputError(f"--on-bad-line {text}: expected fail, skip or quarantine=FILE")


def parse_on_missing(text: str | None) -> OnMissing:
    """Read ``fail`` or ``drop`` (also ``skip``).

    Raises:
        InputError: the text is neither.
    """
    if text in (None, "fail"):
        return "fail"
    if text in ("drop", "skip"):
        return "drop"
    raise InputError(f"--on-missing {text}: expected fail or drop")


def parse_share(option: str, value: str | float) -> float:
    """Read a share as a fraction, ``0.1``, or a percentage, ``10%``.

    Raises:
        InputError: it is neither, or not from 0 to 1 (100%).
    """
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if isinstance(value, bool) or not 0 <= share <= 1:
        raise InputError(f"{option} {text}: expected a share of the rows: 0.1 or 10%, at most 1 or 100%")
    return share


def parse_minimums(option: str, texts: Sequence[str]) -> dict[str, int]:
    """Read the values ``ENTITY=K[,ENTITY=K…]`` of ``option``, at most one per entity.

    Raises:
        InputError: a text has another form.
    """
    minimums: dict[str, int] = {}
    for text in [part for parts in texts for part in parts.split(",")]:
        entity, _, number = text.partition("=")
        if not entity or not number.isdecimal() or entity in minimums:
            raise InputError(f"{option} {text}: expected ENTITY=K, each entity once, such as customer=5 track=10")
        minimums[entity] = int(number)
    return minimums


def parse_spans(text: str | None, entities: Sequence[str]) -> dict[str, MaxAge]:
    """Read ``SPAN``, for all ``entities``, or ``ENTITY=SPAN[,ENTITY=SPAN…]``.

    Raises:
        InputError: the text has another form.
    """
    from crossfade.trainer.prepare.admission import MaxAge

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
    """Read ``ENTITY=FILE:ID_COLUMN:NAME_COLUMN``, at most one per entity.

    Raises:
        InputError: a text has another form.
    """
    from crossfade.trainer.prepare.vocabulary_tables import NamesFile

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


def parse_features(texts: Sequence[str], option: str = "--features") -> list[FeatureFile]:
    """Read ``ENTITY=FILE:ID_COLUMN:[NAME=]COLUMN[,[NAME=]COLUMN…]``, given with ``option``.

    Raises:
        InputError: a text has another form, or a feature has two columns.
    """
    from crossfade.trainer.prepare.features import FeatureFile

    files = []
    for text in texts:
        entity, _, rest = text.partition("=")
        parts = rest.rsplit(":", 2)
        if not entity or len(parts) != 3 or not all(parts):
            raise InputError(
                f"{option} {text}: expected ENTITY=FILE:ID_COLUMN:COLUMN[,COLUMN…], as in "
                "track=songs.parquet:id:artist,tag=tags"
            )
        columns: dict[str, str] = {}
        for column in parts[2].split(","):
            name, of_file = split_pair(column)
            if not name or of_file == "" or name in columns:
                raise InputError(
                    f"{option} {text}: '{column}' is not COLUMN or NAME=COLUMN, each name once; expected "
                    "artist,tag=tags"
                )
            columns[name] = of_file or name
        files.append(FeatureFile(entity, parts[0], parts[1], columns))
    return files


def parse_context(texts: Sequence[str], value: str, example: str) -> dict[str, str]:
    """Read the texts ``NAME=…`` of ``--context``, each name once; ``value`` names what follows, as in ``example``.

    Raises:
        InputError: a text has another form.
    """
    context: dict[str, str] = {}
    for text in texts:
        name, given = split_pair(text)
        if not name or not given or name in context:
            raise InputError(f"--context {text}: expected NAME={value}, each name once, as in {example}")
        context[name] = given
    return context


def parse_number(option: str, text: str) -> float:
    """Read the number ``text`` of ``option``, which may be written 1_000_000 or 1e6.

    Raises:
        InputError: the text is not a finite number.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{option} {text}: '{text}' is not a number; write it as 1000 or 1e3")
    return number


def parse_whole_number(option: str, text: str) -> int:
    """Read the integer ``text`` of ``option``, which may be written 1_000_000 or 1e6.

    Raises:
        InputError: the text is not an integer.
    """
    number = parse_number(option, text)
    if not number.is_integer():
        raise InputError(f"{option} {text}: expected an integer")
    return int(number)


def memory_bytes(gib: float | None) -> int | None:
    """Convert the value of ``--memory`` from GiB to bytes; None stays None.

    Raises:
        InputError: the value is not above 0.
    """
    if gib is None:
        return None
    if not 0 < gib < math.inf:
        raise InputError(f"--memory {gib}: expected a number of GiB above 0")
    return int(gib * 2**30)


def port(text: str) -> int:
    """Read a port, 0 to 65535.

    Raises:
        ArgumentTypeError: the text is not a port.
    """
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port, but found '{text}'")
    return int(text)


def positive_integer(text: str) -> int:
    """Read an integer of at least 1.

    Raises:
        ArgumentTypeError: the text is not one.
    """
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected an integer from 1, but found '{text}'")
    return int(text)
