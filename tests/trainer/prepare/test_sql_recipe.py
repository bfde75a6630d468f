"""The SQL of docs/data-format.md gives a valid dataset that equals that of ``prepare`` and can be trained on."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cluster_data import TRACKS, planted_plays, write_job
from command_here import crossfade_here
from running_command import succeeded

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest, read_manifest
from crossfade.trainer.prepare.option_values import FeatureFile
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "data-format.md"
SPLIT_AT = 1_700_000_000
ENTITIES = ("customer", "track", "artist")
WEIGHTS = {"play": 1.0, "like": 3.0, "skip": -1.0}


def recipe(data: Path) -> str:
    """Return all SQL of the document, writing to ``data``."""
    script = "\n".join(re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL))
    assert script.count("s3://music/plays/") == 6
    return script.replace("s3://music/plays", str(data))


def events() -> pa.Table:
    """Return planted plays as a service would log them; the last one of each customer is after the split time."""
    draw = np.random.default_rng(5)
    tracks_CP = planted_plays(20)
    customers, plays = tracks_CP.shape
    when_CP = SPLIT_AT + np.broadcast_to(np.arange(plays) - plays + 2, (customers, plays))
    actions = draw.choice(["play", "play", "play", "like", "skip", "pause"], customers * plays)
    return pa.table(
        {
            "customer_id": [f"c{number:03d}" for number in np.repeat(np.arange(customers), plays)],
            "track_id": tracks_CP.ravel() + 5000,
            "action": actions,
            "played_at": when_CP.ravel(),
        }
    )


def songs() -> pa.Table:
    """Return one or two artists of each track, and of a track without plays."""
    track_S = np.arange(5000, 5000 + TRACKS + 1)
    of_first, of_second = pa.array(track_S % 17 + 30), pa.array(track_S[::3] % 5 + 30)
    return pa.table(
        {"track_id": np.concatenate([track_S, track_S[::3]]), "artist_id": pa.concat_arrays([of_first, of_second])}
    )


def feature_pairs(data: Path, manifest: DatasetManifest) -> list[dict[str, Any]]:
    files = manifest.features["track"]["artist"].files
    return [row for file in files for row in pq.read_table(data / file.path).to_pylist()]


def rows_of(data: Path, manifest: DatasetManifest, name: str) -> list[dict[str, Any]]:
    return [row for file in manifest.entities[name].files for row in pq.read_table(data / file.path).to_pylist()]


def pairs_of(data: Path, manifest: DatasetManifest, split: str) -> Counter[tuple[Any, ...]]:
    tables = [pq.read_table(data / file.path) for file in manifest.splits[split].files]
    return Counter(tuple(row.values()) for row in pa.concat_tables(tables).to_pylist())


@pytest.mark.slow
def test_documented_sql_gives_dataset_of_prepare_and_it_trains(tmp_path: Path) -> None:
    data, table = tmp_path / "plays", events()
    for folder in (*(f"vocabulary/{name}" for name in ENTITIES), "features/track/artist", "train", "test"):
        (data / folder).mkdir(parents=True)
    with duckdb.connect() as connection:
        connection.register("events", table)
        connection.register("songs", songs())
        connection.execute(recipe(data))
    printed = succeeded(crossfade_here("validate", data, cwd=tmp_path)).stdout
    assert "no problem; wrote its manifest.json" in printed
    manifest = read_manifest(Folder(data))
    assert (manifest.query, manifest.item, manifest.has_timestamp) == ("customer", "track", True)

    known = table.filter(pc.not_equal(table.column("action"), "pause"))
    is_train = pc.less(known.column("played_at"), SPLIT_AT)
    pq.write_table(songs(), tmp_path / "songs.parquet")
    pq.write_table(known.filter(is_train), tmp_path / "train.parquet")
    pq.write_table(known.filter(pc.invert(is_train)), tmp_path / "test.parquet")
    other = prepare(
        PrepareOptions.of(
            out=tmp_path / "prepared",
            train=[tmp_path / "train.parquet"],
            test=[tmp_path / "test.parquet"],
            query="customer=customer_id",
            item="track=track_id",
            event="action",
            event_weights=WEIGHTS,
            timestamp="played_at",
            features=[FeatureFile("track", tmp_path / "songs.parquet", "track_id", {"artist": "artist_id"})],
        )
    )
    assert feature_pairs(data, manifest) == feature_pairs(tmp_path / "prepared", other)
    for name in ENTITIES:
        assert rows_of(data, manifest, name) == rows_of(tmp_path / "prepared", other, name)
    for split in ("train", "test"):
        assert pairs_of(data, manifest, split) == pairs_of(tmp_path / "prepared", other, split)

    write_job(tmp_path / "job.yaml", data)
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=tmp_path))
    assert (tmp_path / "run" / "embeddings" / "track").is_dir()
