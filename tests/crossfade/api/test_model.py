"""``crossfade.Model``: tables of recommendations, neighbors, and vectors; saving and loading."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

import crossfade
from crossfade.cli.main import main
from crossfade.trainer.recommend.row_names import RowNames

pytestmark = pytest.mark.slow


def test_several_queries_keep_their_order(model: crossfade.Model) -> None:
    found = model.recommend(["user_7", "user_3"], k=2)
    assert found["user"].tolist() == ["user_7", "user_7", "user_3", "user_3"]
    assert model.recommend("user_3", k=2)["track"].tolist() == found["track"].tolist()[2:]
    assert len(model.recommend("all", k=2)) == 2 * len(model.ids("user"))
    assert model.recommend("user_42", k=3, where="id < 20")["track"].max() < 20
    assert ": 300 of user, 200 of track, 16 columns)" in repr(model)


def test_known_ids_can_be_told_from_others(model: crossfade.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RowNames, "describe_unknown")  # it reads the vocabulary
    users = np.array(["user_3", "nobody", "user_7"])
    assert model.knows(users).tolist() == [True, False, True]
    assert model.recommend(users[model.knows(users)], k=1)["user"].tolist() == ["user_3", "user_7"]
    assert model.knows([3, "Title 3", -1], "track").tolist() == [True, True, False]


def test_history_of_somebody_new(model: crossfade.Model) -> None:
    found = model.recommend(history=["Title 3", "title 8", 13], k=5)
    assert list(found.columns) == ["rank", "track", "score", "track_name"]
    assert (found["track"] % 5 == 3).sum() >= 4
    assert not set(found["track"]) & {3, 8, 13}


def test_vectors_array_and_ids_agree(model: crossfade.Model) -> None:
    table, array_RD = model.vectors("track"), model.array("track")
    assert table["track"].tolist() == model.ids("track")
    assert np.array_equal(np.stack(table["vector"]), array_RD)
    assert array_RD.shape == (len(table), 16)


def test_saved_model_is_a_run_folder_with_its_dataset(
    model: crossfade.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = model.recommend("user_42", k=3)
    copy = crossfade.load(model.source)
    copy.save(tmp_path / "kept")
    with pytest.raises(crossfade.InputError, match="already exists"):
        model.save(tmp_path / "kept")
    for name in (
        *("checkpoints/embeddings/embeddings.json", "checkpoints/embeddings/epoch-000005/embeddings.json"),
        "checkpoints/embeddings/epoch-000005/user/rows-000000000000.parquet",
        "checkpoints/step-000000001/.manifest.json.0a1b2c3d.partial",
        *("dataset/.baselines.json.0a1b2c3d.partial", "logs/worker-0.log", "map/map.html"),
        *("map/.map.html.partial-0a1b2c3d", ".map.lock"),
    ):
        _write_below(name)(tmp_path / "kept")
    (own := tmp_path / "kept" / "dataset" / "thesis.tex").touch()
    with pytest.raises(crossfade.InputError, match="holds 'dataset/thesis"):
        model.save(tmp_path / "kept", overwrite=True)
    own.unlink()
    model.save(tmp_path / "kept", overwrite=True)
    assert not (tmp_path / "kept" / "map").exists()
    assert (tmp_path / "kept" / "dataset" / "manifest.json").exists()
    loaded = crossfade.load(tmp_path / "kept", frame="polars")
    found = loaded.recommend("user_42", k=3)
    assert isinstance(found, pl.DataFrame)
    assert found["track"].to_list() == expected["track"].tolist()
    assert loaded.metrics == model.metrics
    assert loaded.evaluate("valid")["ndcg@10"] == pytest.approx(model.metrics["valid"]["ndcg@10"])
    assert main(["recommend", str(tmp_path / "kept"), "--customer", "user_42", "-k", "3"]) == 0
    assert all(name in capsys.readouterr().out for name in expected["track_name"][:1])


def _write_below(path: str, text: str = "years of work") -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)

    return write


@pytest.mark.parametrize(
    ("occupy", "message"),
    [
        pytest.param(_write_below("thesis.tex"), "holds 'thesis.tex', which is not part of a model", id="folder"),
        pytest.param(_write_below("job.yaml", "w: 2024-13-45"), "holds no model .it has no job.yaml", id="broken job"),
        pytest.param(_write_below("job.yaml", "kind: Job"), "holds no model .it has no job.yaml", id="other job.yaml"),
        pytest.param(lambda folder: (folder / "logs").mkdir(parents=True), "holds no model .it has no", id="no job"),
        pytest.param(lambda folder: folder.write_text("a file"), "is not a folder, so overwrite does", id="file"),
        pytest.param(lambda folder: folder.symlink_to("nowhere"), "is not a folder, so overwrite does", id="link"),
    ],
)
def test_save_replaces_nothing_but_a_model(
    model: crossfade.Model, tmp_path: Path, occupy: Callable[[Path], object], message: str
) -> None:
    occupy(tmp_path / "kept")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    copy = crossfade.load(model.source)
    with pytest.raises(crossfade.InputError, match=message):
        copy.save(tmp_path / "kept", overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert copy.source == model.source


@pytest.mark.parametrize("below", ["inner", "embeddings/inner", ".."])
def test_save_into_or_above_the_model_or_over_the_current_folder_is_rejected(
    model: crossfade.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    copy = crossfade.load(model.source)
    with pytest.raises(crossfade.InputError, match="lies in the folder of the model"):
        copy.save(Path(model.source) / below, overwrite=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(crossfade.InputError, match="holds the current folder"):
        copy.save(tmp_path, overwrite=True)


@pytest.mark.slow
def test_save_keeps_the_dataset_of_the_model(plays: pd.DataFrame, tmp_path: Path) -> None:
    model = crossfade.fit(plays.head(2000), query="user", item="track", dim=4, epochs=1)
    model.save(tmp_path / "kept")
    assert pickle.loads(pickle.dumps(model)).recommend("all", k=1).equals(model.recommend("all", k=1))
    crossfade.load(tmp_path / "kept").save(tmp_path / "kept", overwrite=True)
    assert (tmp_path / "kept" / "dataset" / "manifest.json").exists()
    other = crossfade.load(tmp_path / "kept")
    other.save(tmp_path / "other")
    with pytest.raises(crossfade.InputError, match="the dataset of the model; choose another folder"):
        other.save(tmp_path / "kept", overwrite=True)
    assert other.recommend("all", k=1) is not None


@pytest.mark.slow
def test_vectors_have_no_row_of_somebody_who_was_forgotten(plays: pd.DataFrame, tmp_path: Path) -> None:
    crossfade.fit(plays.head(2000), query="user", item="track", dim=4, epochs=1).save(tmp_path / "kept")
    before = crossfade.load(tmp_path / "kept").vectors("user")
    (tmp_path / "ids.txt").write_text("".join(f"{id}\n" for id in before["user"][:2]))
    assert main(["forget", str(tmp_path / "kept" / "dataset"), "--ids", str(tmp_path / "ids.txt")]) == 0
    model = crossfade.load(tmp_path / "kept")
    found = model.vectors("user")
    assert found["user"].tolist() == before["user"].tolist()[2:]
    assert np.array_equal(np.stack(found["vector"]), np.stack(before["vector"])[2:])
    assert model.ids("user")[:2] == [None, None]


def test_model_is_opened_once_and_again_in_another_process(model: crossfade.Model) -> None:
    copy = crossfade.load(model.source)
    expected = copy.recommend("user_42", k=3)
    hidden = Path(model.source).rename(Path(model.source).with_name("hidden"))
    try:
        assert copy.recommend("user_42", k=3).equals(expected)
    finally:
        hidden.rename(model.source)
    assert pickle.loads(pickle.dumps(copy)).recommend("user_42", k=3).equals(expected)
