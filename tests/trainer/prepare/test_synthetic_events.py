"""Synthetic raw events: the columns of a log, the planted structure, and reproducible bytes."""

import argparse
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from preparing import checksums

from crossfade.base.io.folder import Folder
from crossfade.cli.main import make_parser
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.prepare import synthetic_events as raw_synthetic
from crossfade.trainer.prepare.options import SyntheticSpec
from crossfade.trainer.prepare.synthetic_draws import START_SECONDS, Generator
from crossfade.trainer.prepare.synthetic_events import write_raw_events

pytestmark = pytest.mark.slow


def parse(words: Sequence[str | Path]) -> argparse.Namespace:
    return make_parser().parse_args(list(map(str, words)))


SPEC = SyntheticSpec(queries=500, items=300, interactions=60_000, genres=6)
SIZES = ("--queries=50", "--items=40", "--interactions=5e3", "--genres=4")


@pytest.fixture
def several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_CHUNK_EVENTS", 1 << 12), ("_FILE_EVENTS", 1 << 14)):
        monkeypatch.setattr(raw_synthetic, name, value)


@pytest.mark.usefixtures("several_files")
def test_events_are_ordered_by_time_with_documented_columns(tmp_path: Path) -> None:
    names = write_raw_events(tmp_path / "raw", SPEC, seed=1)
    assert sorted(names) == [f"events/part-0000{n}.parquet" for n in range(4)] + ["names/track.parquet"]
    events = pa.concat_tables(pq.read_table(tmp_path / "raw" / name) for name in names[:-1])
    assert {field.name: str(field.type) for field in events.schema} == {
        "customer": "string",
        "track": "string",
        "event": "dictionary<values=string, indices=int8, ordered=0>",
        "timestamp": "timestamp[ms, tz=UTC]",
    }
    assert events.num_rows == SPEC.interactions
    milliseconds = events["timestamp"].cast(pa.int64()).to_numpy()
    assert (np.diff(milliseconds) >= 0).all()
    assert milliseconds[0] // 1000 >= START_SECONDS
    assert len(pc.unique(events["customer"])) > 0.95 * SPEC.queries
    assert set(map(len, pc.unique(events["track"]).to_pylist())) == {16}
    assert set(pc.unique(events["event"]).to_pylist()) == {"play", "like", "library_add", "skip"}
    named = pq.read_table(tmp_path / "raw/names/track.parquet")
    assert len(set(named["id"].to_pylist())) == SPEC.items
    assert set(pc.unique(events["track"]).to_pylist()) <= set(named["id"].to_pylist())


def test_genres_popularity_and_taste_are_planted(tmp_path: Path) -> None:
    write_raw_events(tmp_path / "raw", SPEC, seed=1)
    events = pq.read_table(tmp_path / "raw/events/part-00000.parquet").to_pylist()
    names = pq.read_table(tmp_path / "raw/names/track.parquet").to_pylist()
    genre = {row["id"]: row["name"].partition("genre ")[2] for row in names}
    plays = Counter(row["track"] for row in events)
    assert [plays[row["id"]] for row in names[:3]] > [plays[row["id"]] for row in names[-3:]]
    assert sum(count for _, count in plays.most_common(30)) > 0.3 * SPEC.interactions
    by_customer: dict[str, Counter[str]] = {}
    for row in events:
        by_customer.setdefault(row["customer"], Counter())[genre[row["track"]]] += 1
    own = {customer: {name for name, _ in counts.most_common(3)} for customer, counts in by_customer.items()}
    skips = Counter((genre[row["track"]] in own[row["customer"]], row["event"] == "skip") for row in events)
    own_rate, stray_rate = (skips[side, True] / (skips[side, True] + skips[side, False]) for side in (True, False))
    assert skips[True, False] + skips[True, True] > 0.85 * SPEC.interactions
    assert own_rate < 0.2 < 0.4 < stray_rate


def test_drift_changes_genres_and_brings_items_and_customers(tmp_path: Path) -> None:
    new: dict[tuple[str, float], float] = {}
    for drift in (0.0, 0.5):
        write_raw_events(tmp_path / str(drift), SPEC.model_copy(update={"drift": drift}), seed=1)
        events = pq.read_table(tmp_path / str(drift) / "events").to_pandas()
        for side in ("customer", "track"):
            late = events[side][54_000:].value_counts().loc[lambda times: times > 3].index
            new[side, drift] = 1 - late.isin(events[side][:30_000]).mean()
    assert new["customer", 0.0] == new["track", 0.0] == 0
    assert 0.15 < new["customer", 0.5] < 0.3
    assert 0.15 < new["track", 0.5] < 0.3
    # Half of the first genres of customers are planned to change, evenly over time, and events follow.
    spec, rows = SPEC.model_copy(update={"drift": 0.5}), np.arange(SPEC.queries)
    drawn = [Generator(spec, 1).first_genres(rows, np.full_like(rows, at, np.uint64)) for at in (0, 30_000, 59_999)]
    assert [np.mean(drawn[0] != of) for of in drawn[1:]] == pytest.approx([0.25, 0.5], abs=0.06)
    chunk, stays = Generator(spec, 1).chunk(0, spec.interactions), drawn[0] == drawn[2]
    last_N = ~chunk.stray_N & (np.arange(spec.interactions) >= 54_000)
    share_of = [
        np.mean(chunk.item_N[chosen_N] % spec.genres == drawn[0][chunk.query_N[chosen_N]])
        for chosen_N in (last_N & stays[chunk.query_N], last_N & ~stays[chunk.query_N])
    ]
    assert share_of[0] > 0.6
    assert share_of[1] < 0.25  # by other genres of the customer that are the same


@pytest.mark.slow
@pytest.mark.usefixtures("several_files")
def test_bytes_depend_on_seed_but_not_on_threads(tmp_path: Path) -> None:
    for name, seed, threads in (("a", 1, 1), ("b", 1, 3), ("c", 2, 3)):
        write_raw_events(tmp_path / name, SPEC.model_copy(update={"drift": 0.3}), seed, threads=threads)
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b")
    assert not set(checksums(tmp_path / "a").values()) & set(checksums(tmp_path / "c").values())


def test_command_writes_raw_events_and_prints_how_to_prepare_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "raw here"
    arguments = parse(["synthesize", "--raw-events", *SIZES, "--out", out])
    assert arguments.run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: 5,000 events of 50 ids of customer and 40 of track, in 2 files"
    words = shlex.split(lines[1].removeprefix("next: "))
    assert words[:2] == ["crossfade", "prepare"]
    prepared = parse(words[1:])
    assert prepared.run(prepared) == 0
    manifest = read_manifest(Folder(f"{out}-prepared"))
    assert sum(split.rows for split in manifest.splits.values()) == 5000
    assert manifest.entities["track"].has_names
    assert manifest.source["negative"] > 300  # type: ignore[operator]
