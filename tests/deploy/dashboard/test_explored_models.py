"""Models of runs that are opened in the background: progress, new embeddings, errors, and copies that are deleted."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_data import CUSTOMERS, TRACKS
from explored_runs import write_runs
from waiting import wait_until

from crossfade.base.errors import CrossfadeError
from crossfade.deploy.dashboard import bounded_lock, explored_models
from crossfade.deploy.dashboard.explored_models import ExploredModels, Preparing, _Progress, _write_copy
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.options import SimilarOptions
from crossfade.trainer.recommend.trained_model import with_trained_model
from crossfade.trainer.runs.options import ModelSource

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("explored"))


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that has the copies."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def models(copies: Path) -> Iterator[ExploredModels]:
    with closing(ExploredModels()) as models:
        yield models


def neighbors(model: Model) -> list[int]:
    rows: list[int] = model.similar(np.array([7]), SimilarOptions(k=5))[0][0].tolist()
    return rows


def ask(models: ExploredModels, run: Path, question: Callable[[Model], Any] = neighbors) -> Any:
    """Ask until the model is open, and return the answer."""
    answers: list[Any] = []

    def has_answered() -> bool:
        answers[:] = [models.ask(run, question)]
        return not isinstance(answers[0], Preparing)

    wait_until(has_answered, f"the model of {run}")
    return answers[0]


def written_copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("crossfade-model-*/*/version.json"))


def test_first_question_begins_the_preparation_and_others_are_answered(
    workspace: Path, models: ExploredModels, copies: Path
) -> None:
    first = models.ask(workspace / "runs" / "one", neighbors)
    assert isinstance(first, Preparing)
    found = ask(models, workspace / "runs" / "one")
    assert len(found) == 5
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: models.ask(workspace / "runs" / "one", neighbors), range(32)))
    assert answers == [found] * 32
    assert len(written_copies(copies)) == 1


def test_new_embeddings_are_opened_and_the_earlier_copy_is_deleted(
    workspace: Path, models: ExploredModels, copies: Path
) -> None:
    run = copies / "run"
    shutil.copytree(workspace / "runs" / "one", run)
    before = ask(models, run)
    shutil.rmtree(run / "embeddings")
    shutil.copytree(workspace / "runs" / "two" / "embeddings", run / "embeddings")
    expected = ask(models, workspace / "runs" / "two")
    assert expected != before
    wait_until(lambda: ask(models, run) == expected, "the new embeddings")
    wait_until(lambda: len(written_copies(copies)) == 2, "the deletion of the earlier copy")


def test_moved_dataset_is_an_error_until_it_is_back(workspace: Path, models: ExploredModels) -> None:
    (workspace / "data").rename(workspace / "moved")
    try:
        with pytest.raises(CrossfadeError, match=r"data/manifest\.json: no such file"):
            ask(models, workspace / "runs" / "one")
    finally:
        (workspace / "moved").rename(workspace / "data")
    assert ask(models, workspace / "runs" / "one")


def test_run_without_a_model_and_with_an_invalid_job_have_errors_of_their_own(
    workspace: Path, models: ExploredModels, tmp_path: Path
) -> None:
    with pytest.raises(CrossfadeError, match="neither embeddings nor a complete checkpoint yet"):
        models.ask(workspace / "runs" / "empty", neighbors)
    (tmp_path / "job.yaml").write_text("name: x\n", encoding="utf-8")
    with pytest.raises(CrossfadeError, match=r"job\.yaml: the key 'data"):
        models.ask(tmp_path, neighbors)


def test_only_the_models_used_last_stay_open(
    workspace: Path, models: ExploredModels, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explored_models, "MAX_OPEN", 1)
    for name in ("one", "two", "one"):
        assert ask(models, workspace / "runs" / name)
        wait_until(lambda: len(written_copies(copies)) == 1, "the deletion of the other copy")


def test_disk_without_room_is_an_error_that_names_tmpdir(workspace: Path, tmp_path: Path) -> None:
    path, run = tmp_path / "copy", workspace / "runs" / "one"
    needed = 4 * 8 * (CUSTOMERS + TRACKS + 1)
    with pytest.raises(CrossfadeError, match=f"no room for a copy of the vectors, {needed:,} bytes; set TMPDIR"):
        with_trained_model(
            ModelSource(source=str(run)), print, lambda model: _write_copy(model, path, needed - 1, _Progress())
        )
    assert not path.exists()
    with_trained_model(ModelSource(source=str(run)), print, lambda model: _write_copy(model, path, needed, _Progress()))
    assert path.exists()


def test_model_that_is_dropped_while_it_answers_is_closed_after_its_answer(
    workspace: Path, models: ExploredModels, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_lock, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(explored_models, "MAX_OPEN", 1)
    one, two = (workspace / "runs" / name for name in ("one", "two"))
    expected = ask(models, one)

    def open_the_other(model: Model) -> list[int]:
        opened = models._open[one]
        assert ask(models, two)
        wait_until(lambda: opened.closed, "the end of the model that answers")
        return neighbors(model)

    assert models.ask(one, open_the_other) == expected
    wait_until(lambda: len(written_copies(copies)) == 1, "the deletion of its copy")
    models.ask(two, lambda _: models.close())
    assert list(copies.iterdir()) == []
