"""Models of runs that are opened in the background: new embeddings, errors, and copies that are deleted."""

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
from crossfade.deploy.dashboard import explored_models
from crossfade.deploy.dashboard.explored_models import ExploredModels, write_copy
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
        return answers[0] is not None

    wait_until(has_answered, f"the model of {run}")
    return answers[0]


def written_copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("crossfade-model-*/*/version.json"))


def test_model_is_prepared_once_and_again_for_new_embeddings(
    workspace: Path, models: ExploredModels, copies: Path
) -> None:
    run = copies / "run"
    shutil.copytree(workspace / "runs" / "one", run)
    assert models.ask(run, neighbors) is None
    before = ask(models, run)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: models.ask(run, neighbors), range(32)))
    assert answers == [before] * 32
    assert len(written_copies(copies)) == 1
    shutil.rmtree(run / "embeddings")
    shutil.copytree(workspace / "runs" / "two" / "embeddings", run / "embeddings")
    expected = ask(models, workspace / "runs" / "two")
    assert expected != before
    assert ask(models, run) == expected
    wait_until(lambda: len(written_copies(copies)) == 2, "the deletion of the earlier copy")


def test_moved_dataset_is_an_error_until_it_is_back(workspace: Path, models: ExploredModels) -> None:
    (workspace / "data").rename(workspace / "moved")
    try:
        with pytest.raises(CrossfadeError, match=r"data/manifest\.json: no such file"):
            ask(models, workspace / "runs" / "one")
    finally:
        (workspace / "moved").rename(workspace / "data")
    assert ask(models, workspace / "runs" / "one")


def test_run_with_an_invalid_job_is_an_error_of_its_own(models: ExploredModels, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: x\n", encoding="utf-8")
    with pytest.raises(CrossfadeError, match=r"job\.yaml: the key 'data"):
        models.ask(tmp_path, neighbors)


def test_disk_without_room_is_an_error_that_names_tmpdir(workspace: Path, tmp_path: Path) -> None:
    source, path = ModelSource(source=str(workspace / "runs" / "one")), tmp_path / "copy"
    needed = 4 * 8 * (CUSTOMERS + TRACKS + 1)
    with pytest.raises(CrossfadeError, match=f"no room for a copy of the vectors, {needed:,} bytes; set TMPDIR"):
        with_trained_model(source, print, lambda model: write_copy(model, path, needed - 1))
    assert not path.exists()
    with_trained_model(source, print, lambda model: write_copy(model, path, needed))
    assert path.exists()


def test_model_that_is_dropped_while_it_answers_gives_its_answer(
    workspace: Path, models: ExploredModels, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explored_models, "MAX_OPEN", 1)
    one, two = (workspace / "runs" / name for name in ("one", "two"))
    expected = ask(models, one)

    def open_the_other(model: Model) -> list[int]:
        assert ask(models, two)
        return [*neighbors(model), *model.search(model.item, "song 7", 1)]

    assert models.ask(one, open_the_other) == [*expected, 7]
    wait_until(lambda: len(written_copies(copies)) == 1, "the deletion of its copy")
    models.close()
    assert list(copies.iterdir()) == []
