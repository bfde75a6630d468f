"""Wrong arguments of the Python API: each is an ``InputError`` that names the argument, and no option of a command."""

import pickle
import pydoc
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import crossfade

Use = Callable[[crossfade.Model], object]
Fit = dict[str, Any]

UNSAVED = "use model.save(FOLDER) and crossfade.load(FOLDER)"
OF_MODEL: list[tuple[Use, str]] = [
    (lambda m: m.recommend("user_4222"), "expected an ID, such as user_1"),
    (lambda m: m.recommend("user_1", wher="id > 3"), "wher: is unknown; did you mean where?"),
    (lambda m: m.recommend(), 'expected queries (IDs or names, or "all") or history, but found neither'),
    (lambda m: m.recommend("user_1", history=["3"]), "but found both"),
    (lambda m: m.recommend([]), "queries is empty; expected an ID or name, or several"),
    (lambda m: m.recommend(["user_1", None]), "queries: a value is missing"),
    (lambda m: m.recommend(pd.DataFrame({"user": ["user_1"]})), "such as a column; found DataFrame"),
    (lambda m: m.recommend({"user_1": 1}), "found dict"),
    (lambda m: m.recommend(history=[]), "history is empty"),
    (lambda m: m.vectors("artist"), "there is no entity 'artist'; expected user or track"),
    (lambda m: m.evaluate("valid", segments=[]), "segments: is unknown; expected one of "),
    (lambda m: crossfade.load(m.source, frame="spark"), "frame='spark': expected 'pandas', "),  # type: ignore[arg-type]
    (pickle.dumps, UNSAVED),
]
OF_FIT: list[tuple[Fit, str]] = [
    ({"query": None}, "query None: expected the name of a column"),
    ({"query": "usr"}, "has no column 'usr' (did you mean 'user'?)"),
    ({"names": {"artist": "title"}}, "no such entity; expected 'user' or 'track'"),
    ({"read": {"weight": "n"}}, "read: weight is no further option"),
    ({"settings": {"train.epoch": 3}}, "did you mean 'epochs'?"),
    ({"valid": "last-1"}, "name its column with timestamp"),
]
OF_PLAYS: list[tuple[object, str]] = [
    (None, "plays: expected a table of pandas"),
    ({"user": [1], "track": [2]}, "found dict"),
    (pd.DataFrame({"user": [], "track": []}), "hold no interaction; expected at least one"),
    (pa.array([1, 2]), "plays: cannot be read as a table"),
    (pd.DataFrame({"user": ["a", "b"], "track": [7, "x"]}), "whose columns have one type each"),
    ("no.csv", "no.csv: no such file"),
    (pd.DataFrame({"user": [1, 2], "track": [7.5, 8]}), "plays.parquet: column 'track' holds fractional numbers"),
]


def rejection(use: Callable[[], object]) -> str:
    with pytest.raises(crossfade.InputError) as caught:
        use()
    message = str(caught.value)
    assert "--" not in message, message
    return message


@pytest.mark.parametrize("name", sorted({*crossfade.__all__} - {"__version__"}))
def test_help_has_plain_types(name: str) -> None:
    shown = pydoc.render_doc(getattr(crossfade, name), renderer=pydoc.plaintext)
    assert re.findall(r"Annotated|Validator|<\w+ \S+ at 0x\w+>|pydantic|: '|\*\*options", shown) == []
    if name == "Model":
        assert "where: str | None = None, allow: tuple[str, ...] = ()" in shown
        assert "max_per: tuple[str, int] | None = None" in shown


@pytest.mark.parametrize("case", range(len(OF_MODEL)))
def test_wrong_argument_of_a_model_is_named(model: crossfade.Model, case: int) -> None:
    use, expected = OF_MODEL[case]
    assert expected in rejection(lambda: use(model))


@pytest.mark.parametrize("case", range(len(OF_FIT)))
def test_wrong_argument_of_fit_is_named(plays: pd.DataFrame, case: int) -> None:
    options, expected = OF_FIT[case]
    assert expected in rejection(lambda: crossfade.fit(plays[:50], **{"query": "user", "item": "track", **options}))


@pytest.mark.parametrize("case", range(len(OF_PLAYS)))
def test_something_else_than_events_is_named(case: int) -> None:
    given, expected = OF_PLAYS[case]
    assert expected in rejection(lambda: crossfade.fit(given, query="user", item="track"))


def test_ids_of_every_form_are_found(model: crossfade.Model) -> None:
    """Whole numbers that a column with gaps has made fractional are the integers that they were."""
    expected = model.similar([3, 4], k=2)["neighbor"].tolist()
    for names in (["3", 4.0], np.array([3, 4]), pd.Series([3.0, 4.0]), pa.array([3, 4]), pl.Series([3, 4]), (3, 4)):
        assert model.similar(names, k=2)["neighbor"].tolist() == expected
    assert model.similar(np.int64(3), k=2)["neighbor"].tolist() == expected[:2]
