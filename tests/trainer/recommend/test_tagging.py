"""The tag command: planted genres are recovered and written, shuffled ones are not, and invalid input is rejected."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from builders import write_groups, write_vocabulary
from cluster_data import GENRES, TRACKS, write_job, write_planted
from command_here import crossfade_here, rejected_here
from running_command import succeeded

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest, Feature
from crossfade.trainer.data.parquet import file_entry
from crossfade.trainer.recommend.tagging import rank_metrics

pytestmark = pytest.mark.slow

UNLABELED = range(3, TRACKS, 7)
RARE = 12


@pytest.fixture(scope="module", autouse=True)
def _labels(workspace: Path) -> None:
    """Write the genres of six tracks in seven; tracks of genres 0 and 1 are also low."""
    labels = {track: genre_labels(track) for track in range(TRACKS) if track not in UNLABELED}
    for track in list(labels)[:RARE]:
        labels[track].append("rare")
    write_labels(workspace / "genres.csv", labels)


def genre_labels(track: int) -> list[str]:
    genre = track % GENRES
    return [f"genre {genre}", *(["low"] if genre < 2 else [])]


def write_labels(path: Path, labels: dict[int, list[str]]) -> None:
    lines = [f"{5000 + track},{label}\n" for track, names in labels.items() for label in names]
    path.write_text("track,label\n" + "".join(lines))


LABELS = ("--labels", "label", "--metadata", "genres.csv", "--min-items", 20)


@pytest.fixture(scope="module")
def found(workspace: Path) -> dict[str, Any]:
    printed = succeeded(crossfade_here("tag", "run", *LABELS, "--json", cwd=workspace))
    assert printed.stderr == ""
    result: dict[str, Any] = json.loads(printed.stdout)
    return result


def test_planted_genres_are_recovered(found: dict[str, Any]) -> None:
    assert sum(found["rows"]) == TRACKS - len(UNLABELED)
    assert found["rows"] == [102, 34, 35]
    assert found["labels"] == GENRES + 1
    assert found["columns"] == {"embeddings": 8}
    assert found["metrics"]["embeddings"]["roc_auc"] > 0.98
    assert found["metrics"]["embeddings"]["pr_auc"] > 0.95
    assert found["metrics"]["frequency"]["roc_auc"] == 0.5
    assert found["metrics"]["frequency"]["precision@1"] < 0.6 < found["metrics"]["embeddings"]["precision@1"]
    assert found["kept"]["precision"] > 0.9


def test_unlabeled_tracks_get_their_genres(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "tags.parquet"
    command = ("tag", "run", *LABELS, "--out", out)
    printed = succeeded(crossfade_here(*command, "-k", 2, "--threshold", 0.5, cwd=workspace)).stdout
    table = pq.read_table(out)
    assert table.column_names == ["track", "label", "probability", "track_name"]
    assert printed.splitlines()[-1] == f"{table.num_rows:,} labels of {len(UNLABELED)} rows without one: {out}"
    rows = table.to_pylist()
    # The last track, which nobody played, has no trained vector.
    assert {row["track"] - 5000 for row in rows} <= set(UNLABELED)
    assert max(Counter(row["track"] for row in rows).values()) == 2
    assert [row["track"] for row in rows] == sorted(row["track"] for row in rows)
    assert all(0.5 <= row["probability"] <= 1 for row in rows)
    assert all(row["track_name"].endswith(f"Song {row['track'] - 5000}") for row in rows)
    found = {(row["track"] - 5000, row["label"]) for row in rows}
    expected = {(track, label) for track in UNLABELED for label in genre_labels(track)}
    assert len(found & expected) > 0.9 * len(found | expected)
    everything = (*command, "-k", 9, "--threshold", 0, "--overwrite")
    succeeded(crossfade_here(*everything, cwd=workspace))
    table = pq.read_table(out)
    assert table.num_rows == len(UNLABELED) * (GENRES + 1)
    per_track = np.array(table.column("probability")).reshape(len(UNLABELED), -1)
    assert (np.diff(per_track, axis=1) <= 0).all()


@pytest.mark.parametrize("is_list", [False, True])
def test_empty_text_is_no_label(workspace: Path, tmp_path: Path, is_list: bool) -> None:
    labels = ["" if track % 2 else f"x{track % 3}" for track in range(TRACKS)]
    ids = [5000 + track for track in range(TRACKS)]
    pq.write_table(
        pa.table({"track": ids, "lab": [[label] for label in labels] if is_list else labels}), tmp_path / "lab.parquet"
    )
    command = ("tag", "run", "--labels", "lab", "--metadata", tmp_path / "lab.parquet", "--min-items", 10)
    out = tmp_path / "l.csv"
    succeeded(crossfade_here(*command, "--threshold", 0, "-k", 1, "--out", out, cwd=workspace))
    written = csv.read_csv(out)
    assert set(written["label"].to_pylist()) <= {"x0", "x1", "x2"}
    assert written["track"].to_pylist() == ids[1::2]


def test_text_shows_the_table_and_predictions_by_a_feature(tmp_path: Path) -> None:
    data = write_planted(tmp_path / "data", held_out=False)
    labeled_N = np.arange(TRACKS - 2 * GENRES)
    pairs = pa.table({"row": labeled_N, "value": labeled_N % GENRES})
    write_groups(data / "features/track/genre/part-0.parquet", [pairs])
    manifest = DatasetManifest.model_validate_json((data / "manifest.json").read_bytes())
    feature = Feature(files=[file_entry(Folder(data), "features/track/genre/part-0.parquet")])
    genre = write_vocabulary(data, "genre", range(GENRES), names=[f"genre {number}" for number in range(GENRES)])
    entities = {**manifest.entities, "genre": genre}
    manifest.model_copy(update={"entities": entities, "features": {"track": {"genre": feature}}}).write(Folder(data))
    job = write_job(tmp_path / "job.yaml", data, train={"epochs": 1})
    succeeded(crossfade_here("train", job, "--run-dir", "run", cwd=tmp_path))
    command = ("tag", "run", "--labels", "genre", "--threshold", 0, "--min-items", 20)
    lines = succeeded(crossfade_here(*command, cwd=tmp_path)).stdout.splitlines()
    assert lines[0].startswith(f"190 rows of track with {GENRES} labels, 1.0 per row: 114 fitted, 38 to choose")
    assert lines[1].split() == ["method", "roc_auc", "pr_auc", "pr_auc_micro", "precision@1"]
    assert [line.split()[0] for line in lines[2:4]] == ["embeddings", "frequency"]
    assert lines[4].startswith("predicted labels (3 at most, probability 0): ")
    assert all(" genre " in line for line in lines[6:])


def test_invalid_input_is_rejected(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tag = ("tag", "run", *LABELS[:4])
    rejected_here("the most frequent label has", *tag, "--min-items", 100, cwd=workspace)
    rejected_here("there is no column 'style'", "tag", "run", "--labels", "style", *LABELS[2:4], cwd=workspace)
    write_labels(tmp_path / "same.csv", {track: ["music"] for track in range(TRACKS)})
    rejected_here("no label divides the", *tag, "--metadata", tmp_path / "same.csv", cwd=workspace)
    (tmp_path / "tags.parquet").touch()
    inside_a_file = tmp_path / "tags.parquet" / "tags.parquet"
    rejected_here("cannot be written", "tag", "run", *LABELS, "--out", inside_a_file, cwd=workspace)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    rejected_here("crossfade tag needs the package 'scikit-learn', which is not", *tag, cwd=workspace)


def test_metrics_of_a_small_ranking() -> None:
    has_NL = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 1]], np.bool_)
    score_NL = np.array([[0.9, 0.3, 0], [0.8, 0.6, 0], [0.7, 0.2, 0]], np.float32)
    found = rank_metrics(has_NL, score_NL)  # the third label is left out
    # By label: the rows 0, 1, 2 with the first and the last right; the rows 1, 0, 2 with the same places right.
    assert found["roc_auc"] == pytest.approx(0.5)
    assert found["pr_auc"] == pytest.approx((1 + 2 / 3) / 2)
    # In one ranking: right, wrong, right, right, wrong, right.
    assert found["pr_auc_micro"] == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 6) / 4)
    assert found["precision@1"] == pytest.approx(2 / 3)
