"""Synthetic listening, as a dataset and as raw events: formats, the planted structure, and reproducible bytes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from preparing import checksums

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.features import load_content
from crossfade.trainer.data.manifest import DatasetManifest, read_manifest
from crossfade.trainer.prepare import synthetic, synthetic_draws, synthetic_events
from crossfade.trainer.prepare.options import SyntheticSpec
from crossfade.trainer.prepare.synthetic import FIRST_ID, write_synthetic
from crossfade.trainer.prepare.synthetic_draws import START_SECONDS, Generator
from crossfade.trainer.prepare.synthetic_events import write_raw_events

pytestmark = pytest.mark.slow
SPEC = SyntheticSpec(queries=3_000, items=1_000, interactions=200_000, genres=10)
EVENTS = SyntheticSpec(queries=500, items=300, interactions=60_000, genres=6)


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


def test_audio_follows_genres(tmp_path: Path) -> None:
    spec = SyntheticSpec(queries=50, items=6000, interactions=5000, genres=5, audio=8)
    manifest = write_synthetic(tmp_path / "one", spec, 1)
    assert manifest.source["audio"] == 8
    content = load_content(Folder(tmp_path / "one"), manifest, "track", ["audio"])
    assert content.filled_R.all()
    numbers_RF = content.values_RF[:, :8]
    assert np.square(numbers_RF).mean() == pytest.approx(1.0, rel=0.35)
    center_GF = np.array([numbers_RF[genre::5].mean(axis=0) for genre in range(5)])
    assert (numbers_RF - center_GF[np.arange(6000) % 5]).var() == pytest.approx(0.5, rel=0.05)
    assert len({row.tobytes() for row in numbers_RF}) == 6000


def test_raw_events_are_ordered_by_time_and_do_not_depend_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic_events, "_CHUNK_EVENTS", 1 << 12)
    monkeypatch.setattr(synthetic_events, "_FILE_EVENTS", 1 << 14)
    for out, seed, threads in (("a", 1, 1), ("b", 1, 3), ("c", 2, 3)):
        names = write_raw_events(tmp_path / out, Generator(EVENTS, seed), threads=threads)
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b")
    assert not set(checksums(tmp_path / "a").values()) & set(checksums(tmp_path / "c").values())
    assert names == [f"events/part-0000{n}.parquet" for n in range(4)] + ["names/track.parquet"]
    events = pa.concat_tables(pq.read_table(tmp_path / "a" / name) for name in names[:-1])
    assert {field.name: str(field.type) for field in events.schema} == {
        "customer": "string",
        "track": "string",
        "event": "dictionary<values=string, indices=int8, ordered=0>",
        "timestamp": "timestamp[ms, tz=UTC]",
    }
    assert events.num_rows == EVENTS.interactions
    milliseconds = events["timestamp"].cast(pa.int64()).to_numpy()
    assert (np.diff(milliseconds) >= 0).all()
    assert milliseconds[0] // 1000 >= START_SECONDS
    assert len(pc.unique(events["customer"])) > 0.95 * EVENTS.queries
    assert set(pc.unique(events["event"]).to_pylist()) == {"play", "like", "library_add", "skip"}
    named = pq.read_table(tmp_path / "a/names/track.parquet")["id"].to_pylist()
    assert len(set(named)) == EVENTS.items
    assert set(pc.unique(events["track"]).to_pylist()) <= set(named)


def test_genres_popularity_and_taste_are_planted(tmp_path: Path) -> None:
    write_raw_events(tmp_path / "raw", Generator(EVENTS, seed=1))
    events = pq.read_table(tmp_path / "raw/events/part-00000.parquet").to_pylist()
    names = pq.read_table(tmp_path / "raw/names/track.parquet").to_pylist()
    genre = {row["id"]: row["name"].partition("genre ")[2] for row in names}
    plays = Counter(row["track"] for row in events)
    assert [plays[row["id"]] for row in names[:3]] > [plays[row["id"]] for row in names[-3:]]
    assert sum(count for _, count in plays.most_common(30)) > 0.3 * EVENTS.interactions
    by_customer: dict[str, Counter[str]] = {}
    for row in events:
        by_customer.setdefault(row["customer"], Counter())[genre[row["track"]]] += 1
    own = {customer: {name for name, _ in counts.most_common(3)} for customer, counts in by_customer.items()}
    skips = Counter((genre[row["track"]] in own[row["customer"]], row["event"] == "skip") for row in events)
    own_rate, stray_rate = (skips[side, True] / (skips[side, True] + skips[side, False]) for side in (True, False))
    assert skips[True, False] + skips[True, True] > 0.85 * EVENTS.interactions
    assert own_rate < 0.2 < 0.4 < stray_rate
