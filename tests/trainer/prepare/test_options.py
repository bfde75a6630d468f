"""Options of preparing: their forms as text, and what is wrong with a value or with two options together."""

from pathlib import Path
from typing import Any

import pytest

from crossfade.base.errors import OptionError
from crossfade.trainer.data.time_values import TimeSpan
from crossfade.trainer.prepare.option_values import ALL, EntityColumn, FeatureFile, NamesFile
from crossfade.trainer.prepare.options import ForgetOptions, PrepareOptions, SynthesizeOptions

TIMES: dict[str, Any] = {"timestamp": "at"}
FEATURES: dict[str, Any] = {"features": "item=tags.csv:id:tag"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"query": "customer=user"}, EntityColumn("customer", "user")),
        ({"query": "user"}, EntityColumn("user")),
        ({"delimiter": "\\t"}, "\t"),
        ({"encoding": "Windows-1252"}, "cp1252"),
        ({"min_count": ["customer=5,item=10"]}, {"customer": 5, "item": 10}),
        ({"admit": ["customer=5", "item=1"]}, {"customer": 5, "item": 1}),
        ({"event_weights": "a=b=1,skip=-1", "event": "e"}, {"a=b": 1.0, "skip": -1.0}),
        ({"expire_after": "90d", **TIMES}, {ALL: TimeSpan("90d", 90 * 86400, True)}),
        (
            {"expire_after": "customer=36h,item=7", **TIMES},
            {"customer": TimeSpan("36h", 36 * 3600, True), "item": TimeSpan("7", 7, False)},
        ),
        ({"names": ["item=C:/songs.csv:id:title"]}, {"item": NamesFile("C:/songs.csv", "id", "title")}),
        ({"content": "item=a.parquet:id:x,y=z"}, (FeatureFile("item", "a.parquet", "id", {"x": "x", "y": "z"}),)),
        ({"context": ["device=type,of", "h=timestamp:hour"], **TIMES}, {"device": "type,of", "h": "timestamp:hour"}),
        ({"max_bad": "10%"}, 0.1),
        ({"replay": "250%", "base": "data"}, 2.5),
        ({"train": Path("a.csv")}, ("a.csv",)),
    ],
)
def test_options_have_forms_as_text(values: dict[str, Any], expected: object) -> None:
    options = PrepareOptions.of(**{"out": "out", "train": "a.csv", **values})
    assert getattr(options, next(iter(values))) == expected


def test_one_span_is_of_both_entities() -> None:
    options = PrepareOptions.of(out="out", train="a.csv", query="user", expire_after="9", timestamp="at")
    assert options.max_ages() == {"user": TimeSpan("9", 9, False), "item": TimeSpan("9", 9, False)}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"train": None}, "train"),
        ({"train": None, "sample": "lastfm", "weight": "w"}, "weight"),
        ({"sample": "lastfm"}, "sample"),
        ({"skip_existing": True}, "skip_existing"),
        ({"query": ""}, "query"),
        ({"event_weights": "play", "event": "e"}, "event_weights"),
        ({"event_weights": "a=1,a=2", "event": "e"}, "event_weights"),
        ({"on_bad_line": "ignore"}, "on_bad_line"),
        ({"names": "x=y:z"}, "names"),
        ({"names": ["item=a:b:c", "item=a:b:d"]}, "names"),
        ({"min_count": ["customer=5", "customer=2"]}, "min_count"),
        ({"admit": "item=x"}, "admit"),
        *(
            ({"expire_after": text, **TIMES}, "expire_after")
            for text in ("0d", "-3", "item=", "item=9d,item=8d", "=9d", "1.5d")
        ),
        ({"context": "device=a", "duplicates": "keep", "item": "device"}, "context"),
        *(({"replay": share, "base": "data"}, "replay") for share in (0, -0.5, "half", "nan", True, 100.1, "")),
        ({"memory": -1}, "memory"),
        ({"threads": 0}, "threads"),
        ({"event_weights": {"a": float("inf")}, "event": "e"}, "event_weights"),
        ({"event": "e"}, "event"),
        ({"weight": "w", "event": "e", "event_weights": {"5": 1.0}}, "weight"),
        ({"timestamp_format": "iso"}, "timestamp_format"),
        *(({"delimiter": text}, "delimiter") for text in ("::", '"', "", "é")),
        *(({"encoding": text}, "encoding") for text in ("latin-99", "hex", "undefined")),
        ({"decimal": ";"}, "decimal"),
        ({"max_bad": 20}, "max_bad"),
        ({"names": "song=no.csv:a:b"}, "names"),
        ({"features": "song=tags.csv:id:tag"}, "features"),
        ({"features": "item=tags.parquet"}, "features"),
        ({"features": "item=tags.csv:id:tags,tags"}, "features"),
        ({"features": "item=tags.csv:id:customer=tag"}, "features"),
        ({"features": "item=tags.csv:id:a/b=tag"}, "features"),
        ({"content": "artist=a.csv:id:x"}, "content"),
        ({"content": "item=a.csv:id:item"}, "content"),
        ({"catalog": "item"}, "catalog"),
        ({"context": "hour"}, "context"),
        ({"context": "a/b=device"}, "context"),
        ({"context": "item=device"}, "context"),
        ({"context": "hour=timestamp:hour"}, "context"),
        ({"context": "device=device", "duplicates": "sum"}, "context"),
        ({"query": "../x=customer"}, "query"),
        ({"item": "weight"}, "item"),
        ({"query": "item"}, "item"),
        ({"admit": {"song": 2}}, "admit"),
        ({"admit": {"item": 0}}, "admit"),
        ({"admit": "item=2", "catalog": "item", **FEATURES}, "admit"),
        ({"expire_after": "90 days", **TIMES}, "expire_after"),
        ({"expire_after": "90d"}, "expire_after"),
        ({"hold_out_gap": "soon", **TIMES}, "hold_out_gap"),
        ({"hold_out_gap": "1d", "hold_out": "after:50", "base": "data", **TIMES}, "hold_out_gap"),
        ({"replay": "50%"}, "replay"),
        ({"replay": "12000%", "base": "data"}, "replay"),
        ({"seed": -1}, "seed"),
    ],
)
def test_invalid_option_is_named(values: dict[str, Any], field: str) -> None:
    given = {"out": "out", "train": "a.csv", **values}
    with pytest.raises(OptionError) as raised:
        PrepareOptions.of(**{name: value for name, value in given.items() if value is not None})
    assert raised.value.field[0] == field


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"queries": 0}, "queries"),
        ({"queries": "many"}, "queries"),
        ({"queries": "1.5"}, "queries"),
        ({"interactions": 0}, "interactions"),
        ({"genres": 5, "items": 4}, "genres"),
        ({"valid": -0.1}, "valid"),
        ({"valid": "inf"}, "valid"),
        ({"valid": 0.5, "test": 0.5}, "valid"),
        ({"query": "track"}, "item"),
    ],
)
def test_invalid_option_of_synthetic_data_is_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(OptionError) as raised:
        SynthesizeOptions.of(out="out", **values)
    assert raised.value.field[0] == field


def test_ids_to_forget_are_required() -> None:
    with pytest.raises(OptionError, match=r"^ids: is missing; read IDs"):
        ForgetOptions.of(data="data")
