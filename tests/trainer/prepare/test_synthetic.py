"""Synthetic listening: the format of the dataset, the planted structure, and reproducible bytes."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from preparing import checksums

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest, read_manifest
from crossfade.trainer.prepare import synthetic, synthetic_draws
from crossfade.trainer.prepare.options import SyntheticSpec
from crossfade.trainer.prepare.synthetic import FIRST_ID, write_synthetic

pytestmark = pytest.mark.slow
SPEC = SyntheticSpec(queries=3_000, items=1_000, interactions=200_000, genres=10)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetManifest]:
    out = tmp_path_factory.mktemp("synthetic") / "out"
    return out, write_synthetic(out, SPEC, seed=1)


def columns(out: Path, manifest: DatasetManifest, split: str) -> dict[str, np.ndarray]:
    tables = [pq.read_table(out / file.path) for file in manifest.splits[split].files]
    return {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in tables[0].schema.names}


def test_dataset_has_vocabularies_that_count_train_and_splits_that_share_no_pair(
    dataset: tuple[Path, DatasetManifest],
) -> None:
    out, manifest = dataset
    assert read_manifest(Folder(out)) == manifest
    assert sum(split.rows for split in manifest.splits.values()) == SPEC.interactions
    written = {split: columns(out, manifest, split) for split in manifest.splits}
    for entity, rows in (("customer", SPEC.queries), ("track", SPEC.items)):
        table = pq.read_table(out / manifest.entities[entity].files[0].path)
        assert table["row"].to_pylist() == list(range(rows))
        assert table["id"].to_pylist() == [FIRST_ID + row for row in range(rows)]
        assert table["count"].to_pylist() == np.bincount(written["train"][entity], minlength=rows).tolist()
    assert table["name"].to_pylist()[16] == "track 17 (folk)"
    pairs = {split: np.unique(found["customer"] * SPEC.items + found["track"]) for split, found in written.items()}
    for held_out in ("valid", "test"):
        assert manifest.splits[held_out].rows / SPEC.interactions == pytest.approx(0.1, abs=0.01)
        assert np.intersect1d(pairs["train"], pairs[held_out]).size == 0
    assert np.intersect1d(pairs["valid"], pairs["test"]).size == 0


def test_bytes_depend_only_on_the_seed_and_draws_not_on_chunks(
    tmp_path: Path, dataset: tuple[Path, DatasetManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("again", 1), ("other", 2)):
        write_synthetic(tmp_path / name, SPEC, seed=seed)
    assert checksums(tmp_path / "again") == checksums(dataset[0])
    same = set(checksums(tmp_path / "other").items()) & set(checksums(dataset[0]).items())
    # The row of an item determines its genre.
    assert {path for path, _ in same} == {"features/track/genre/part-00000.parquet"}
    for module in (synthetic, synthetic_draws):
        monkeypatch.setattr(module, "CHUNK_ROWS", 30_011)
    manifest = write_synthetic(tmp_path / "chunks", SPEC, seed=1)
    for split in manifest.splits:
        one, other = columns(tmp_path / "chunks", manifest, split), columns(*dataset, split)
        assert all(np.array_equal(one[name], other[name]) for name in one)
