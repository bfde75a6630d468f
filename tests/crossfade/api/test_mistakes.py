"""Wrong arguments of the Python API: each is an ``InputError`` that names the argument, and no option of a command."""

import copy
import pickle
import pydoc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import crossfade

Use = Callable[[crossfade.Model], object]
Fit = dict[str, Any]

STRANGERS = ["user_1", *(f"x{number}" for number in range(25))]
UNSAVED = "use model.save(FOLDER) and crossfade.load(FOLDER)"
OF_MODEL: list[tuple[Use, str]] = [
    (lambda m: m.recommend("user_4222"), "did you mean 'user_2"),
    (lambda m: m.recommend(STRANGERS), "the model has no user with these 25 IDs or names: x0, x1, x2, x3, "),
    (lambda m: m.recommend(STRANGERS), " x19 … (25 in all); on_unknown='skip' leaves them out, on_unknown='popular' "),
    (lambda m: m.recommend("user_1", on_unknown="popula"), "on_unknown='popula': did you mean popular?"),
    (lambda m: m.recommend(history=["3"], on_unknown="skip"), "on_unknown='skip': is for customers by ID"),
    (lambda m: m.similar(["Title 3", "x", "y"]), "for which model.knows(ids, 'track') is False"),
    (pickle.dumps, UNSAVED),
    (copy.deepcopy, UNSAVED),
    (lambda m: m.recommend("user_1", k=-1), "k=-1: expected an integer from 1"),
    (lambda m: m.recommend(), 'expected queries (IDs or names, or "all") or history, but found neither'),
    (lambda m: m.recommend("user_1", history=["3"]), "but found both"),
    (lambda m: m.recommend([]), "queries is empty; expected an ID or name, or several"),
    (lambda m: m.recommend(["user_1", None]), "queries[1] is missing"),
    (lambda m: m.recommend([pd.NA]), "queries[0] is missing"),
    (lambda m: m.recommend(float("nan")), "queries=nan is missing"),
    (lambda m: m.recommend(pd.DataFrame({"user": ["user_1"]})), "but found DataFrame: pass a column"),
    (lambda m: m.recommend({"user_1": 1}), "but found dict: pass a column"),
    (lambda m: m.recommend([["user_1"]]), "queries[0]: expected an ID or name, but found list"),
    (lambda m: m.recommend(b"user_1"), "queries=b'user_1': expected an ID or name, but found bytes"),
    (lambda m: m.recommend(history=[]), "history is empty"),
    (lambda m: m.recommend("user_1", exclude="vali"), "did you mean valid?"),  # type: ignore[arg-type]
    (lambda m: m.recommend("user_1", where=3), "where=3: expected text"),
    (lambda m: m.recommend("user_1", wher="id > 3"), "wher: is unknown; did you mean where?"),
    (lambda m: m.recommend("user_1", context={"hour": 3}), "has no context 'hour'"),
    (lambda m: m.recommend(history=["3"], context={"hour": 3}), "context='hour=3': is added to trained vectors"),
    (lambda m: m.recommend("user_1", where="yeer > 3"), "where='yeer > 3': "),
    (lambda m: m.recommend("user_1", where="x > 1", metadata="no.csv"), "metadata='no.csv': no such file"),
    (
        lambda m: m.recommend("user_1", max_per=("title", 0)),
        "max_per=('title', 0): expected COLUMN=N with N of 1 or more",
    ),
    (lambda m: m.similar([]), "names is empty"),
    (lambda m: m.vectors("artist"), "there is no entity 'artist'; expected user or track"),
    (lambda m: m.evaluate("tset"), "split='tset': did you mean test?"),  # type: ignore[arg-type]
    (lambda m: m.evaluate("valid", k=0), "k=0: expected an integer from 1"),
    (lambda m: m.evaluate("test"), "has no split 'test'"),
    (lambda m: m.save(3), "folder=3: expected a path"),  # type: ignore[arg-type]
    (lambda m: crossfade.load(m.source, frame="spark"), "frame='spark': expected 'pandas', "),  # type: ignore[arg-type]
    (lambda _: crossfade.load(None), "source=None: expected a path"),  # type: ignore[arg-type]
]
OF_FIT: list[tuple[Fit, str]] = [
    ({"dim": 0}, "dim=0: expected an integer from 1"),
    ({"epoch": 3}, "epoch: is unknown; did you mean epochs?"),
    ({"seed": 1.5}, "seed=1.5: expected an integer from 0"),
    ({"query": None}, "query=None: expected text"),
    ({"query": "usr"}, "plays: has no column 'usr' (did you mean 'user'?)"),
    ({"query": "track"}, "item='track': has the same name as query='track'"),
    ({"weight": 3}, "weight=3: expected text"),
    ({"names": ["title"]}, "names=['title']: expected a dictionary"),
    ({"names": {"track": 3}}, 'names["track"]=3: expected the name of a column'),
    ({"read": ["skip"]}, "read=['skip']: expected a dictionary"),
    ({"read": {"id_type": "int"}}, "read={'id_type': 'int'}: expected auto, integer, or string"),
    ({"read": {"timestamp_format": 3}}, "read={'timestamp_format': 3}: expected text"),
    ({"read": {"on_badline": "skip"}}, "read: unknown key 'on_badline'; did you mean 'on_bad_line'?"),
    ({"read": {"delimiter": ";"}}, "read: 'delimiter' describes files, and plays is a data frame; leave it out"),
    ({"names": {"artist": "title"}}, "names='artist=…': no such entity; expected 'user' or 'track'"),
    ({"settings": {"train.epoch": 3}}, "did you mean 'epochs'?"),
    ({"valid": "random:2"}, "valid='random:2': the fraction must be a number between 0 and 1"),
    ({"valid": 0.1}, "valid=0.1: expected text"),
    ({"valid": "last-1"}, "name its column with timestamp"),
    ({"settings": [1]}, "settings=[1]: expected a dictionary"),
    ({"settings": {"model.dim": -3}}, 'settings={"model.dim": -3}: model.dim: input should be greater'),
    ({"settings": {"evaluate.k": {1}}}, "settings: evaluate.k: expected numbers, text, lists, and dictionaries"),
    ({"settings": {"cluster.workers": 3, "cluster.store": "mxnet"}}, "set cluster.servers"),
]
OF_PLAYS: list[tuple[object, str]] = [
    (None, "plays: expected a table of pandas"),
    ([], "plays=[]: expected a table, or the path"),
    ({"user": [1], "track": [2]}, "found dict"),
    (np.zeros((3, 2)), "found ndarray"),
    (pd.Series(["a"], name="user"), "but found Series"),
    (pd.DataFrame({"user": [], "track": []}), "hold no interaction; expected at least one in plays"),
    (pl.DataFrame({"a": [1]}), "plays: has no column 'user'"),
    (pa.array([1, 2]), "plays: cannot be read as a table"),
    ("no.csv", "plays='no.csv': no such file"),
    (pd.DataFrame({"user": [1, 2], "track": [7.5, 8]}), "plays: column 'track' holds fractional numbers"),
    (pd.DataFrame({"user": ["a", None, "b"], "track": [1, 2, 3]}), "plays, row 1: the query id"),
]


def rejection(use: Callable[[], object], kind: type[Exception] = crossfade.InputError) -> str:
    with pytest.raises(kind) as caught:
        use()
    assert isinstance(caught.value, crossfade.InputError)
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


def test_items_of_a_history_need_no_trained_vector_so_that_knows_is_no_advice(model: crossfade.Model) -> None:
    message = rejection(lambda: model.recommend(history=["x", "y"]))
    assert message.endswith("the model has no track with these 2 IDs or names: x, y")


@pytest.mark.parametrize("case", range(len(OF_FIT)))
def test_wrong_argument_of_fit_is_named(plays: pd.DataFrame, case: int) -> None:
    options, expected = OF_FIT[case]
    assert expected in rejection(lambda: crossfade.fit(plays[:50], **{"query": "user", "item": "track", **options}))


@pytest.mark.parametrize("case", range(len(OF_PLAYS)))
def test_something_else_than_events_is_named(case: int) -> None:
    given, expected = OF_PLAYS[case]
    assert expected in rejection(lambda: crossfade.fit(given, query="user", item="track"))


def test_wrong_job_is_named_by_its_settings(tmp_path: Path) -> None:
    values = {"name": "a", "data": {"path": str(tmp_path / "no")}}
    for use, expected in (
        (lambda: crossfade.Job([1]), "values=[1]: expected a dictionary"),  # type: ignore[arg-type]
        (lambda: crossfade.Job(values, {"model.dim": 0}), 'settings={"model.dim": 0}: model.dim'),
        (lambda: crossfade.Job.from_yaml(3), "path=3: expected a path"),  # type: ignore[arg-type]
        (lambda: crossfade.Job(values).train(servers="2"), "servers='2': expected an integer"),  # type: ignore[arg-type]
        (lambda: crossfade.Job(values).train(run_dir=3), "run_dir=3: expected a path"),  # type: ignore[arg-type]
    ):
        assert expected in rejection(use)
    # A command that is to be typed into a shell keeps its options.
    with pytest.raises(crossfade.InputError, match="a folder written by 'crossfade prepare --out "):
        crossfade.Job(values).train(run_dir=tmp_path / "run")


def test_estimator_that_is_not_fitted_says_so_as_scikit_learn_does() -> None:
    from sklearn.exceptions import NotFittedError

    estimator = crossfade.Recommender(query="user", item="track")
    events = pd.DataFrame({"user": ["a"], "track": [1]})
    for use in (lambda: estimator.predict(events), lambda: estimator.score(events)):
        assert "call fit with events first" in rejection(use, NotFittedError)


@pytest.mark.slow
def test_wrong_events_of_an_estimator_are_named(plays: pd.DataFrame) -> None:
    estimator = crossfade.Recommender(query="user", item="track", dim=8, epochs=1)
    assert "y: events have no target" in rejection(lambda: estimator.fit(plays, plays["track"]))
    estimator.fit(plays[:2000])
    assert "X has no row" in rejection(lambda: estimator.predict(plays[:0]))
    assert "X: expected a table" in rejection(lambda: estimator.predict(["user_1"]))
    assert "X: no event has a known query" in rejection(lambda: estimator.score(plays[:0]))


def test_ids_of_every_form_are_found(model: crossfade.Model) -> None:
    """Whole numbers that a column with gaps has made fractional are the integers that they were."""
    expected = model.similar([3, 4], k=2)["neighbor"].tolist()
    for names in (["3", 4.0], np.array([3, 4]), pd.Series([3.0, 4.0]), pa.array([3, 4]), pl.Series([3, 4]), (3, 4)):
        assert model.similar(names, k=2)["neighbor"].tolist() == expected
    assert model.similar(np.int64(3), k=2)["neighbor"].tolist() == expected[:2]


@pytest.mark.slow
def test_more_than_there_are_means_all(model: crossfade.Model) -> None:
    tracks = len(model.ids("track"))
    found = model.recommend("user_42", k=10**12, exclude=())
    assert len(found) == tracks
    assert found["rank"].max() == tracks
    assert len(model.similar(3, k=10**12)) == tracks - 1
    assert set(model.recommend("all", k=10**12)["user"]) == set(model.ids("user"))
    metrics = model.evaluate("valid", k=[5, 10**12])
    assert metrics[f"recall@{tracks}"] == 1
