"""``crossfade.fit`` trains on every kind of table and on files, and returns results of the same kind."""

import importlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import crossfade

from .conftest import SETTINGS

pytestmark = pytest.mark.slow

OPTIONS: dict[str, Any] = {"query": "user", "item": "track", "dim": 4, "epochs": 1, "settings": SETTINGS}


def test_recommends_tracks_of_the_genre_that_a_user_likes(model: crossfade.Model) -> None:
    found = model.recommend("user_42", k=5)
    assert list(found.columns) == ["user", "rank", "track", "score", "track_name"]
    assert found["rank"].tolist() == [1, 2, 3, 4, 5]
    assert (found["track"] % 5 == 42 % 5).sum() >= 4
    assert found["track_name"].tolist() == [f"Title {track}" for track in found["track"]]
    assert found["score"].is_monotonic_decreasing
    assert model.metrics["valid"]["ndcg@10"] > 0.1
    assert "test" not in model.metrics


@pytest.mark.parametrize(
    ("convert", "kind"),
    [
        pytest.param(lambda plays: pl.from_pandas(plays).lazy(), pl.DataFrame, id="lazy"),
        pytest.param(lambda plays: ds.dataset(pa.Table.from_pandas(plays)), pa.Table, id="dataset"),
        pytest.param(duckdb.from_df, duckdb.DuckDBPyRelation, id="duckdb"),
    ],
)
def test_results_are_of_the_kind_of_the_events(
    plays: pd.DataFrame, convert: Callable[[pd.DataFrame], Any], kind: type
) -> None:
    model = crossfade.fit(convert(plays[:500]), **OPTIONS)
    for found in (model.recommend(plays["user"][0], k=2), model.similar(7, k=2), model.vectors("user")):
        assert isinstance(found, kind)


def test_path_gives_the_same_model_as_the_frame(plays: pd.DataFrame, tmp_path: Path) -> None:
    plays[:500].to_parquet(tmp_path / "plays.parquet")
    vectors = [crossfade.fit(source, **OPTIONS).array() for source in (plays[:500], str(tmp_path / "plays.parquet"))]
    assert (vectors[0] == vectors[1]).all()


def rejection(plays: Any, **options: Any) -> str:
    """Return the message of the error that ``fit`` raises."""
    with pytest.raises(crossfade.InputError) as caught:
        crossfade.fit(plays, **(OPTIONS | options))
    return str(caught.value)


def test_columns_that_are_not_named_may_be_of_any_type(plays: pd.DataFrame) -> None:
    mixed = plays[:500].assign(extra=[1, "a", b"c", {}, []] * 100)
    mixed.index = pd.Index(range(500, 1000))
    assert len(crossfade.fit(mixed, **OPTIONS).ids("user")) == plays[:500]["user"].nunique()
    for other in (pl.from_pandas(plays[:50]), duckdb.from_df(plays[:50]), pa.Table.from_pandas(plays[:50])):
        assert "has no column 'Tracks' (did you mean 'track'?)" in rejection(other, item="Tracks")


def test_faults_are_in_the_message(plays: pd.DataFrame) -> None:
    dirty = plays[:50].assign(user=[None, None, *["u"] * 48], at=[*["2024-05-01"] * 2, "soon", *["2024-05-01"] * 47])
    message = rejection(dirty, timestamp="at")
    assert message.startswith("the events have 3 faults: 2 rows: the query id of column 'user' is missing or empty; ")
    assert "plays.parquet, rows 0, 1); 1 row: the timestamp of column 'at' is not a timestamp; " in message
    assert "or leave out bad lines with on_bad_line skip" in message
    assert "--" not in message
    read = {"on_bad_line": "skip"}
    assert crossfade.fit(dirty, timestamp="at", read=read, **OPTIONS).ids("user") == ["u"]


def test_fit_in_a_thread_prints_nothing_and_leaves_no_file_without_the_model(
    plays: pd.DataFrame, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module("ipykernel")  # as a process that starts kernels does, and is no notebook
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # those of commands that other tests ran
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    models: list[crossfade.Model] = []
    thread = threading.Thread(target=lambda: models.append(crossfade.fit(plays[:500], **OPTIONS)))
    thread.start()
    thread.join()
    assert len(models[0].recommend(plays["user"][0], k=3)) == 3
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir())
    models.clear()
    assert not list(tmp_path.iterdir())


def test_interrupt_returns_the_model_of_the_steps_so_far(
    plays: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = signal.getsignal(signal.SIGINT)

    def interrupt_in_the_second_epoch() -> None:
        while not any('"epoch": 2' in path.read_text() for path in tmp_path.glob("crossfade-*/run/events.jsonl")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_in_the_second_epoch, daemon=True).start()
    with caplog.at_level(logging.WARNING):
        model = crossfade.fit(plays, **(OPTIONS | {"epochs": 1_000_000}))
    assert any("stopped" in record.message for record in caplog.records)
    assert model.report is None
    assert len(model.recommend("user_42", k=3)) == 3
    assert signal.getsignal(signal.SIGINT) is before
