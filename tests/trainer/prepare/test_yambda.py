"""Yambda: kinds of events, half-played tracks, the published split, artists, albums, and audio."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from preparing import interactions, prepare_files, vocabulary_tuples, write_parquet
from yambda_files import KINDS, LAST_TIMESTAMP, write_yambda

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.prepare.summary import format_summary

DAY, GAP = 86_400, 1_800
TEST = LAST_TIMESTAMP - DAY
VALID = TEST - GAP - DAY


def prepare_yambda(out: Path, *train: Path, **options: Any) -> DatasetManifest:
    """Prepare files of Yambda."""
    return prepare_files(out, *train, format="yambda", **options)


def events_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a file of events."""
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def published_split(events: list[dict[str, Any]], valid: bool) -> dict[str, Counter[tuple[int, int, float, int]]]:
    """Split as the published code does: by time, with gaps, and without users that train lacks."""
    end = VALID - GAP if valid else TEST - GAP
    users = {event["uid"] for event in events if event["timestamp"] < end}
    split: dict[str, Counter[tuple[int, int, float, int]]] = {"train": Counter(), "valid": Counter(), "test": Counter()}
    for event in events:
        at = event["timestamp"]
        row = (event["uid"], event["item_id"], 1.0, at)
        if at < end:
            split["train"][row] += 1
        elif event["uid"] in users and (at >= TEST or (valid and VALID <= at < TEST - GAP)):
            split["test" if at >= TEST else "valid"][row] += 1
    return {name: rows for name, rows in split.items() if rows}


@pytest.mark.slow
@pytest.mark.parametrize("valid", [True, False])
def test_listens_of_half_a_track_are_split_as_published(tmp_path: Path, valid: bool) -> None:
    folder = write_yambda(tmp_path, users=300, items=2_000, listens=60_000)
    late = [(7, TEST - GAP - 5, 1), (7, TEST - GAP, 2), (7, TEST - 5, 3), (7, TEST, 4)]
    late += [(8, VALID - GAP - 5, 1), (8, VALID - GAP, 2), (8, VALID - 5, 3), (8, VALID, 4), (9, TEST + 5, 5)]
    columns = dict(zip(("uid", "timestamp", "item_id"), map(list, zip(*late, strict=True)), strict=True))
    edges = write_parquet(tmp_path / "edges" / "listens.parquet", **columns, played_ratio_pct=[50] * len(late))
    manifest = prepare_yambda(
        tmp_path / "out", folder / "listens.parquet", edges, **({} if valid else {"hold_out_valid": "none"})
    )
    events = [*events_of(folder, "listens"), *events_of(edges.parent, "listens")]
    expected = published_split([event for event in events if event["played_ratio_pct"] >= 50], valid)
    assert {name: Counter(interactions(tmp_path / "out", name)) for name in manifest.splits} == expected
    assert manifest.splits["test"].rows > 50
    kept = {user for rows in expected.values() for user, *_ in rows}
    assert {row[1] for row in vocabulary_tuples(tmp_path / "out", "customer")} == kept  # none of what is left out
    assert {7, 8, 9} & kept == ({8} if valid else {7, 8})
    summary = format_summary(manifest, Folder(tmp_path / "out"))
    assert "in the gap before what is held out" in summary
    assert "held out of ids without an earlier one" in summary


@pytest.mark.slow
def test_folder_of_kinds_equals_file_of_all_kinds(tmp_path: Path) -> None:
    folder = write_yambda(tmp_path, users=40, items=300, listens=20_000)
    found = {}
    for name, train in (("kinds", folder), ("all", folder / "multi_event.parquet")):
        prepare_yambda(tmp_path / name, train, context="kind=event_type")
        found[name] = Counter(interactions(tmp_path / name, "train"))
        kinds = Counter(row[1] for row in vocabulary_tuples(tmp_path / name, "kind"))
        assert set(kinds) == {"listen_plus", "like", "dislike"}
    assert found["kinds"] == found["all"]
    assert {row[2] for row in found["all"]} == {1.0, -1.0}
    for name in KINDS:
        (folder / f"{name}.parquet").unlink()
    prepare_yambda(tmp_path / "rest", folder, context="kind=event_type")  # the file of all kinds is all that is left
    assert Counter(interactions(tmp_path / "rest", "train")) == found["all"]


@pytest.mark.slow
def test_artists_albums_and_audio_are_features_and_content(tmp_path: Path) -> None:
    folder = write_yambda(tmp_path, users=20, items=300, listens=5_000, width=8)
    manifest = prepare_yambda(
        tmp_path / "out",
        folder / "likes.parquet",
        features=[
            f"track={tmp_path}/{name}_item_mapping.parquet:item_id:{name}={name}_id" for name in ("artist", "album")
        ],
        content=f"track={tmp_path}/embeddings.parquet:item_id:audio=normalized_embed",
        catalog="track",
        hold_out="random:0.1",
    )
    assert set(manifest.features["track"]) == {"artist", "album"}
    assert manifest.features["track"]["artist"].pairs == manifest.entities["track"].rows == 300
    assert (manifest.content["track"]["audio"].width, manifest.content["track"]["audio"].pairs) == (8, 240)


@pytest.mark.parametrize(
    ("cause", "name", "columns"),
    [
        (
            "has no column 'event_type', so its name must be that of a kind",
            "plays",
            {"uid": [1], "item_id": [1], "timestamp": [5]},
        ),
        ("has no column 'played_ratio_pct", "listens", {"uid": [1], "item_id": [1], "timestamp": [5]}),
        (
            "the event 'skip' of column 'event_type' has no weight",
            "multi_event",
            {"uid": [1], "item_id": [1], "timestamp": [5]},
        ),
        ("has no column 'uid", "likes", {"user": [1], "item_id": [1], "timestamp": [5]}),
    ],
)
def test_file_of_another_schema_is_rejected(
    tmp_path: Path, cause: str, name: str, columns: dict[str, list[Any]]
) -> None:
    if name == "multi_event":
        columns = {**columns, "event_type": ["skip"], "played_ratio_pct": [None]}
    file = write_parquet(tmp_path / f"{name}.parquet", **columns)
    with pytest.raises(InputError) as raised:
        prepare_yambda(tmp_path / "out", file)
    assert cause in str(raised.value)


def test_events_that_are_given_twice_and_other_folders_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        prepare_yambda(tmp_path / "out", tmp_path)
    assert "is a folder without files of Yambda" in str(raised.value)
    columns = {"uid": [1], "item_id": [1], "timestamp": [5], "played_ratio_pct": [100]}
    files = [
        write_parquet(tmp_path / "multi_event.parquet", **columns, event_type=["listen"]),
        write_parquet(tmp_path / "listens.parquet", **columns),
    ]
    with pytest.raises(InputError) as raised:
        prepare_yambda(tmp_path / "out", *files)
    assert "has, too; leave out one of the two" in str(raised.value)
