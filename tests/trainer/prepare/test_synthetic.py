"""Synthetic datasets: their format, the planted structure, and reproducible bytes."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from preparing import checksums

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.features import load_content
from crossfade.trainer.data.manifest import DatasetManifest, read_manifest
from crossfade.trainer.prepare import synthetic, synthetic_draws
from crossfade.trainer.prepare.options import SyntheticSpec
from crossfade.trainer.prepare.staging import row_group_rows
from crossfade.trainer.prepare.summary import format_summary
from crossfade.trainer.prepare.synthetic import FIRST_ID, write_synthetic

SPEC = SyntheticSpec(queries=3_000, items=1_000, interactions=200_000, genres=10)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetManifest]:
    out = tmp_path_factory.mktemp("synthetic") / "out"
    return out, write_synthetic(out, SPEC, seed=1)


def columns(out: Path, manifest: DatasetManifest, split: str) -> dict[str, np.ndarray]:
    tables = [pq.read_table(out / file.path) for file in manifest.splits[split].files]
    return {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in tables[0].schema.names}


def test_synthetic_dataset_has_format_of_prepared_data(dataset: tuple[Path, DatasetManifest]) -> None:
    out, manifest = dataset
    assert read_manifest(Folder(out)) == manifest
    assert sum(split.rows for split in manifest.splits.values()) == SPEC.interactions
    for split in manifest.splits.values():
        (file,) = split.files
        footer = pq.read_metadata(out / file.path)
        assert file.row_groups == [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
        assert set(file.row_groups[:-1]) == {row_group_rows(split.rows)}
    schema = pq.read_schema(out / manifest.splits["train"].files[0].path)
    assert [(field.name, str(field.type)) for field in schema] == [
        ("customer", "int64"),
        ("track", "int64"),
        ("weight", "float"),
        ("timestamp", "int64"),
    ]
    assert not (out / ".work").exists()
    assert "customer x track" in format_summary(manifest, Folder(out))


def test_vocabularies_count_train_and_name_items_by_genre(dataset: tuple[Path, DatasetManifest]) -> None:
    out, manifest = dataset
    train = columns(out, manifest, "train")
    for entity, rows in (("customer", SPEC.queries), ("track", SPEC.items)):
        table = pq.read_table(out / manifest.entities[entity].files[0].path)
        assert table["row"].to_pylist() == list(range(rows))
        assert table["id"].to_pylist() == [FIRST_ID + row for row in range(rows)]
        assert table["count"].to_pylist() == np.bincount(train[entity], minlength=rows).tolist()
    names = table["name"].to_pylist()
    assert names[16] == "track 17 (folk)"
    assert names[0] == "track 1 (rock)"


@pytest.mark.slow
def test_bytes_depend_only_on_the_seed(tmp_path: Path, dataset: tuple[Path, DatasetManifest]) -> None:
    write_synthetic(tmp_path / "again", SPEC, seed=1)
    write_synthetic(tmp_path / "other", SPEC, seed=2)
    assert checksums(tmp_path / "again") == checksums(dataset[0])
    same = set(checksums(tmp_path / "other").items()) & set(checksums(dataset[0]).items())
    # The row of an item determines its genre.
    assert {path for path, _ in same} == {"features/track/genre/part-00000.parquet"}


@pytest.mark.slow
def test_draws_do_not_depend_on_chunk_size(
    tmp_path: Path, dataset: tuple[Path, DatasetManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 30_011)
    monkeypatch.setattr(synthetic_draws, "CHUNK_ROWS", 30_011)
    manifest = write_synthetic(tmp_path / "out", SPEC, seed=1)
    for split in manifest.splits:
        one, other = columns(tmp_path / "out", manifest, split), columns(*dataset, split)
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_fractions_are_met_and_splits_share_no_pair(dataset: tuple[Path, DatasetManifest]) -> None:
    out, manifest = dataset
    pairs = {}
    for split in manifest.splits:
        written = columns(out, manifest, split)
        pairs[split] = np.unique(written["customer"] * SPEC.items + written["track"])
    assert manifest.splits["valid"].rows / SPEC.interactions == pytest.approx(0.1, abs=0.01)
    assert manifest.splits["test"].rows / SPEC.interactions == pytest.approx(0.1, abs=0.01)
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert np.intersect1d(pairs[one], pairs[other]).size == 0


def test_audio_follows_genres_and_is_the_same_again(tmp_path: Path) -> None:
    spec = SyntheticSpec(queries=50, items=6000, interactions=5000, genres=5, audio=8)
    manifest, again = (write_synthetic(tmp_path / name, spec, 1) for name in ("one", "two"))
    assert manifest == again
    assert manifest.source["audio"] == 8
    content = load_content(Folder(tmp_path / "one"), manifest, "track", ["audio"])
    assert content.filled_R.all()
    numbers_RF = content.values_RF[:, :8]
    assert np.square(numbers_RF).mean() == pytest.approx(1.0, rel=0.35)
    center_GF = np.array([numbers_RF[genre::5].mean(axis=0) for genre in range(5)])
    noise_RF = numbers_RF - center_GF[np.arange(6000) % 5]
    assert np.abs(noise_RF[:5] / center_GF - 1).min() > 0.01
    assert noise_RF.var() == pytest.approx(0.5, rel=0.05)
    assert len({row.tobytes() for row in numbers_RF}) == 6000
