"""The blocks that formats read: vectors as text, and which rows are trained."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from builders import ITEM, QUERY
from written_runs import TRAINED, UNTRAINED, ArrayVectors, WrittenRun, write_run

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.formats.export import database_names
from crossfade.trainer.formats.exported_model import Block, ExportedModel
from crossfade.trainer.model.spec import ModelSpec, Score, TowerSpec
from crossfade.trainer.recommend.trained_model import TrainedModel


@pytest.fixture
def run(tmp_path: Path) -> WrittenRun:
    return write_run(tmp_path)


def exported(run: WrittenRun, *, item_has_features: bool) -> ExportedModel:
    query, item = (TableSpec(name, *run.vectors[name].shape, 0.1) for name in (QUERY, ITEM))
    towers = (TowerSpec(item, item, (), mean=False),) if item_has_features else ()
    spec = ModelSpec(query, item, Score.of("cosine", 1.0), towers)
    data, vectors = Folder(run.data), ArrayVectors(run.vectors)
    model = TrainedModel("run", load_job(run.path / "job.yaml"), spec, data, read_manifest(data), vectors, "1")
    return ExportedModel(model, spec.vectors, {}, datetime.now(UTC), NullReporter())


def test_items_with_features_are_trained_without_interactions(run: WrittenRun) -> None:
    rows = len(TRAINED) + len(UNTRAINED)
    for item_has_features, untrained in ((False, UNTRAINED), (True, [3])):
        model = exported(run, item_has_features=item_has_features)
        table = model.model.spec.item
        trained_R = np.concatenate([block.trained_N for block in model.blocks(table)])
        assert [row for row in range(rows) if not trained_R[row]] == untrained
        customers = np.concatenate([block.trained_N for block in model.blocks(model.model.spec.query)])
        assert customers.all()
        assert [written.untrained for written in model.exported_tables(complete=True)] == [0, len(untrained)]
        assert model.exported_tables(complete=False)[1].rows == rows - len(untrained)


def test_text_of_vectors_reads_back_as_the_same_values() -> None:
    random = np.random.default_rng(3)
    bits = random.integers(0, 2**32, 40_000, dtype=np.uint32).view(np.float32)
    finite = bits[np.isfinite(bits)][:32_000]
    finite[:6] = [0.0, -1.0, 1.0, np.finfo(np.float32).max, np.finfo(np.float32).tiny, 1e-45]
    vectors_ND = finite.reshape(-1, 16)
    block = Block(pa.table({"row": range(len(vectors_ND))}), vectors_ND, np.ones(len(vectors_ND), np.bool_))
    read_ND = np.array([json.loads(text) for text in block.vector_texts().to_pylist()], np.float32)
    np.testing.assert_array_equal(read_ND.view(np.uint32), vectors_ND.view(np.uint32))


def test_names_in_databases_are_those_of_job_and_entity() -> None:
    assert database_names("Day-2", ["Track"], "pgvector") == {"Track": "day_2_track"}
    assert database_names("music", ["a", "b-c"], "pgvector") == {"a": "music_a", "b-c": "music_b_c"}
    assert database_names("m" * 57, ["track"], "s3-vectors") == {"track": "m" * 57 + "-track"}
    with pytest.raises(InputError, match="64 characters, of 63 at most in S3 Vectors"):
        database_names("m" * 58, ["track"], "s3-vectors")
