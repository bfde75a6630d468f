"""Models read from S3 by a real server whose answers are broken: the same result, or an error that names the object."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from builders import ITEM, QUERY
from flaky_proxy import Fault, Proxy, flaky_proxy
from object_store import ObjectStore, running_object_store
from written_runs import CUSTOMER_IDS, TRACK_IDS, WrittenRun, save_checkpoint, write_run, write_vectors

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import CrossfadeError, InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.options import ModelSource

Vectors = dict[str, FloatArray]
CASES: tuple[tuple[Fault, str], ...] = (("cut", "run"), ("flip", "checkpoints"))
"""What each format detects. ``test_s3_reading.py`` has requests that fail."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with running_object_store(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, store: ObjectStore) -> WrittenRun:
    """Upload a run with embeddings, its dataset, and a checkpoint with the same vectors."""
    run = write_run(tmp_path_factory.mktemp("run"))
    write_vectors(run.path / "embeddings", run.data, save_checkpoint(run, 7))
    store.upload(run.data, "data")
    store.upload(run.path / "checkpoints", "checkpoints")
    store.upload(run.path, "run")
    return run


@pytest.fixture
def proxy(store: ObjectStore, run: WrittenRun, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with flaky_proxy(store.endpoint) as proxy:
        variables = {"AWS_ENDPOINT_URL": proxy.endpoint, "CROSSFADE_S3_TIMEOUT_SECONDS": "1"}
        for name, value in {**store.variables, **variables, "CROSSFADE_S3_ATTEMPTS": "3"}.items():
            monkeypatch.setenv(name, value)
        yield proxy


def read(store: ObjectStore, source: str) -> Vectors:
    """Return all vectors of the model in ``source``."""

    def use(model: TrainedModel) -> Vectors:
        sizes = {QUERY: len(CUSTOMER_IDS), ITEM: len(TRACK_IDS)}
        # Not from the first row on: a checkpoint reads these one by one.
        rows = {entity: np.arange(1, size) for entity, size in sizes.items()}
        return {entity: model.vectors.vectors(entity, rows_N) for entity, rows_N in rows.items()}

    return with_trained_model(ModelSource(source=store.uri(source), data=store.uri("data")), lambda _: None, use)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "source"), CASES)
def test_broken_answers_change_no_vector(
    store: ObjectStore, run: WrittenRun, proxy: Proxy, source: str, fault: Fault
) -> None:
    expected = read(store, source)
    before = proxy.requests
    read(store, source)
    requests = proxy.requests - before
    failed = 0
    for every in (1, 2, 3, 5, 7, 11, *range(12, requests + 1, 5)):
        proxy.inject_every(fault, every)
        try:
            found = read(store, source)
        except CrossfadeError as error:
            failed += 1
            assert store.uri("") in str(error)  # noqa: PT017 - either outcome is right
        else:
            for entity, vectors_ND in expected.items():
                np.testing.assert_array_equal(found[entity], vectors_ND)
    proxy.inject_every(fault, 0)
    assert failed >= 1


@pytest.mark.slow
def test_embeddings_replaced_while_they_are_read_are_rejected(
    store: ObjectStore, run: WrittenRun, proxy: Proxy, tmp_path: Path
) -> None:
    """The new object has as many bytes and the same layout, so that its pages fit the old footer."""
    other = {name: np.float32(1.5) * vectors for name, vectors in run.vectors.items()}
    write_vectors(tmp_path / "other", run.data, other)
    changing = Folder(store.uri("changing"))
    changing.write("job.yaml", (run.path / "job.yaml").read_bytes())
    write_vectors(tmp_path / "same", run.data, run.vectors)
    store.upload(tmp_path / "same", "changing/embeddings")

    def use(model: TrainedModel) -> None:
        model.vectors.vectors(QUERY, np.arange(2))
        [file] = (tmp_path / "other" / ITEM).glob("*.parquet")
        changing.write(f"embeddings/{ITEM}/{file.name}", file.read_bytes())
        model.vectors.vectors(ITEM, np.arange(len(TRACK_IDS)))

    with pytest.raises(InputError, match=rf"{ITEM}/rows-000000000000\.parquet: "):
        with_trained_model(ModelSource(source=store.uri("changing"), data=store.uri("data")), lambda _: None, use)
