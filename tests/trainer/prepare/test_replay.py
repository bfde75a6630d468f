"""Replay: interactions of base datasets, drawn at random, which are trained on and nothing else."""

import json
import shutil
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_data import write_job
from command_here import crossfade_here
from preparing import checksums, prepare_files, random_events, vocabulary_tuples, write_parquet
from running_command import succeeded

from crossfade.base.io.folder import Folder
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest, Split, read_manifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.prepare import replay
from crossfade.trainer.prepare.option_values import MAX_REPLAY
from crossfade.trainer.prepare.options import ValidateOptions
from crossfade.trainer.prepare.validate import validate
from crossfade.trainer.runs.job_inputs import load_inputs, select_rows, trained_counts

pytestmark = pytest.mark.slow


def day(folder: Path, name: str, base: str | None = None, *, count: int = 2000, **options: Any) -> DatasetManifest:
    """Prepare random events, which differ from day to day; ``base`` names an earlier day."""
    raw = folder / f"{name}.parquet"
    if not raw.exists():
        write_parquet(raw, **random_events(count, seed=sum(name.encode())))
    values = {"timestamp": "when", "hold_out_valid": "none", **({"base": str(folder / base)} if base else {})}
    return prepare_files(folder / name, raw, **{**values, **options})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare three days, of which the second has a test split, and the last replays half as much as it has."""
    folder = tmp_path_factory.mktemp("days")
    day(folder, "day1")
    day(folder, "day2", "day1", hold_out_test="random:0.3")
    day(folder, "day3", "day2", count=900, replay="50%")
    return folder


@pytest.fixture
def days(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path, dirs_exist_ok=True))


def tables(data: Path, split: Split | None) -> list[dict[str, Any]]:
    files = split.files if split else []
    return [row for file in files for row in pq.read_table(data / file.path).to_pylist()]


def replayed(data: Path) -> Counter[tuple[Any, ...]]:
    """Count the rows of the replay of a dataset."""
    return Counter(tuple(row.values()) for row in tables(data, read_manifest(Folder(data)).replay))


def of_bases(data: Path) -> Counter[tuple[Any, ...]]:
    """Count the train interactions of the base datasets whose IDs still have their rows, in the rows of ``data``."""
    with closing(LineageReader(Folder(data), read_manifest(Folder(data)))) as lineage:
        own = len(tables(data, lineage.manifest.splits["train"]))
        parts = list(lineage.read_train(timestamps=True))
    rows = [
        (query, item, weight, at)
        for part in parts
        for query, item, weight, at in zip(
            part.query_N.tolist(), part.item_N.tolist(), part.weight_N.tolist(), part.timestamp_N.tolist(), strict=True
        )
    ]
    return Counter(rows[: len(rows) - own])


def test_share_of_own_train_is_drawn_from_train_of_all_bases(prepared: Path) -> None:
    manifest = read_manifest(Folder(prepared / "day3"))
    found = replayed(prepared / "day3")
    assert manifest.splits["train"].rows == 900
    assert found.total() == 450
    assert found <= of_bases(prepared / "day3")
    for name in ("day1", "day2"):  # rows are kept, so that those of a base dataset are the same in this one
        train = Counter(
            tuple(row.values()) for row in tables(prepared / name, manifest_of(prepared / name).splits["train"])
        )
        share = (found & train).total() / found.total()
        assert share > 0.3, name
    files = manifest.splits["train"].files, manifest.replay.files if manifest.replay else []
    schemas = [pq.read_schema(prepared / "day3" / file.path) for [file] in files]
    assert schemas[0] == schemas[1]


def manifest_of(data: Path) -> DatasetManifest:
    return read_manifest(Folder(data))


def test_all_are_drawn_where_there_are_fewer_and_none_twice(days: Path) -> None:
    day(days, "day4", "day3", count=500, replay=MAX_REPLAY)
    found = replayed(days / "day4")
    assert found == of_bases(days / "day4")
    originals = [manifest_of(days / name).splits["train"].rows for name in ("day1", "day2", "day3")]
    assert found.total() == sum(originals)  # without those that day3 replays


def test_of_a_long_history_some_row_groups_are_read_and_some_queries_drawn(
    days: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_FEW_ROWS", "_LEAST_ROWS"):
        monkeypatch.setattr(replay, name, 0)
    day(days, "day4", "day3", count=300, replay=0.5)
    found = replayed(days / "day4")
    assert 100 < found.total() <= 150
    assert found <= of_bases(days / "day4")


def test_same_seed_draws_the_same_and_another_one_others(days: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        shutil.copy(days / "day3.parquet", days / f"{name}.parquet")
        day(days, name, "day2", replay=0.5, seed=seed)
    assert checksums(days / "again") == checksums(days / "day3")
    assert (replayed(days / "other") & replayed(days / "day3")).total() < 300
    assert replayed(days / "other").total() == 450


def test_replay_changes_nothing_else(days: Path) -> None:
    shutil.copy(days / "day3.parquet", days / "plain.parquet")
    plain = day(days, "plain", "day2")
    assert plain.replay is None
    assert "replay" not in json.loads((days / "plain" / "manifest.json").read_text())
    others = {path: value for path, value in checksums(days / "day3").items() if not path.startswith("replay/")}
    assert others == checksums(days / "plain")
    expected = plain.model_dump(exclude={"source", "replay"})
    assert manifest_of(days / "day3").model_dump(exclude={"source", "replay"}) == expected
    for name in ("day3", "plain"):
        shutil.copy(days / "day3.parquet", days / f"after-{name}.parquet")
        day(days, f"after-{name}", name)
    assert checksums(days / "after-day3") == checksums(days / "after-plain")
    known = []
    for name in ("after-day3", "after-plain"):
        with closing(LineageReader(Folder(days / name), manifest_of(days / name))) as lineage:
            rows = [part.query_N for part in lineage.read_known(["train", "valid"])]
            known.append((np.concatenate(rows).tolist(), lineage.counts("item").tolist(), lineage.train_rows()))
    assert known[0] == known[1]


def test_forgotten_and_expired_ids_are_not_drawn(tmp_path: Path) -> None:
    plays = {0: "abcd" * 5 + "efgh", 100: "abc" * 8, 130: "abxyz" * 5, 135: "abxyzw" * 5}
    base: dict[str, str] = {}
    for at, items in plays.items():
        columns = {"customer": [f"c{number % 4}" for number in range(len(items))], "item": list(items)}
        raw = write_parquet(tmp_path / f"{at}.parquet", **columns, when=[at] * len(items))
        options = {"expire_after": "item=40", "replay": 10} if base else {"expire_after": "item=40"}
        prepare_files(tmp_path / f"data{at}", raw, timestamp="when", hold_out_valid="none", **options, **base)
        if at == 100:
            (tmp_path / "ids.txt").write_text("c1\n")
            succeeded(crossfade_here("forget", "data100", "--ids", "ids.txt", cwd=tmp_path))
        base = {"base": str(tmp_path / f"data{at}")}
    last = tmp_path / "data135"
    ids = {name: [row[1] for row in vocabulary_tuples(last, name)] for name in ("customer", "item")}
    assert "x" in ids["item"][:8]  # it has the row of an item that expired
    assert replayed(last) == of_bases(last) != Counter()
    assert {ids["item"][item] for _, item, *_ in replayed(last)} == set("abcxyz")
    assert replayed(last)[ids["customer"].index("c0"), ids["item"].index("x"), 1.0, 0] == 0
    gone = [row for row, name in enumerate(ids["customer"]) if name in ("c1", None)]
    from_before = [row for row in replayed(last) if row[0] in gone and row[3] < 130]
    assert from_before == []


def test_complete_histories_are_drawn_of_customers_with_new_events_first(tmp_path: Path) -> None:
    base = {"customer": [f"c{number % 12}" for number in range(120)], "item": [f"i{n // 12}" for n in range(120)]}
    prepare_files(tmp_path / "day0", write_parquet(tmp_path / "day0.parquet", **base), hold_out_valid="none")
    others = []
    for day in range(1, 4):
        raw = write_parquet(tmp_path / f"day{day}.parquet", customer=["c3", "c5", "new", "c3"], item=["i1"] * 4)
        options = {"base": tmp_path / f"day{day - 1}", "replay": 35 / 4, "hold_out_valid": "none"}
        manifest = prepare_files(tmp_path / f"day{day}", raw, **options)
        ids = [row[1] for row in vocabulary_tuples(tmp_path / f"day{day}", "customer")]
        drawn = Counter(ids[row["customer"]] for row in tables(tmp_path / f"day{day}", manifest.replay))
        assert drawn.pop("c3") == 10 + 2 * (day - 1)
        assert drawn.pop("c5") == 10 + day - 1
        drawn.pop("new", None)  # who has none before the first day
        assert [count for count in drawn.values() if count != 10] == [drawn.total() % 10]
        others.append(frozenset(drawn))
    assert len(set(others)) > 1


def check(data: Path) -> list[str]:
    return validate(ValidateOptions.of(data=data), NullReporter()).problems.listed


def test_forget_deletes_replayed_interactions(days: Path) -> None:
    target = max(replayed(days / "day3"))[0]
    [customer] = [row[1] for row in vocabulary_tuples(days / "day3", "customer") if row[0] == target]
    before = replayed(days / "day3")
    (days / "ids.txt").write_text(f"{customer}\n")
    printed = succeeded(crossfade_here("forget", "day3", "--ids", "ids.txt", cwd=days)).stdout
    after = replayed(days / "day3")
    dropped = sum(count for row, count in before.items() if row[0] == target)
    assert dropped > 0
    assert f"{dropped} of replay" in printed
    assert after == Counter({row: count for row, count in before.items() if row[0] != target})
    assert check(days / "day3") == []
    (days / "ids.txt").write_text("\n".join(row[1] for row in vocabulary_tuples(days / "day3", "customer") if row[1]))
    succeeded(crossfade_here("forget", "day3", "--ids", "ids.txt", cwd=days))
    assert manifest_of(days / "day3").replay is None
    assert not list((days / "day3" / "replay").glob("*.parquet"))


def test_training_reads_train_and_replay(days: Path) -> None:
    for name, run in (("day1", "run1"), ("day3", "run3")):
        write_job(days / f"{run}.yaml", name)
    succeeded(crossfade_here("train", "run1.yaml", "--run-dir", "run1", cwd=days))
    times = [row["timestamp"] for row in tables(days / "day3", manifest_of(days / "day3").trained_on())]
    late = sum(time >= 25 for time in times)
    assert len(times) == 1350
    assert 0 < late < 900
    start = ("--set", "checkpoint.warm_start_from=run1/checkpoints")
    for options, examples in (((), 1350), (("--set", "data.since=25"), late)):
        succeeded(crossfade_here("train", "run3.yaml", "--run-dir", "run3", "--overwrite", *start, *options, cwd=days))
        assert json.loads((days / "run3" / "report.json").read_text())["examples"] == 2 * examples
    succeeded(crossfade_here("plan", "run3.yaml", cwd=days))


def test_half_life_and_frequencies_count_the_replay(prepared: Path) -> None:
    data = prepared / "day3"
    values = {"name": "job", "data": {"path": str(data), "query": "customer", "item": "item"}}
    inputs = load_inputs(check_job({**values, "train": {"half_life": 10}}, "test"))
    selection = select_rows(inputs.job, inputs.folder, inputs.manifest, NullReporter())
    assert selection.rows == 1350
    assert {group.file.path.partition("/")[0] for group in selection.groups} == {"train", "replay"}
    assert selection.ages is not None
    found = Counter(row["item"] for row in tables(data, inputs.manifest.trained_on()))
    assert trained_counts(inputs, "item").tolist() == [
        found[item] for item in range(inputs.manifest.entities["item"].rows)
    ]
