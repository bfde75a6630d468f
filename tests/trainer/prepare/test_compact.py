"""A compacted dataset holds what the newest dataset and its bases hold, in the same rows, and takes their place."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_data import write_job
from command_here import crossfade_here, rejected_here
from object_store import running_object_store
from preparing import (
    checksums,
    forget_dataset,
    interactions,
    prepare_files,
    vocabulary,
    write_parquet,
)
from running_command import succeeded

from crossfade.base.errors import CrossfadeError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest, data_fingerprint, read_manifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.prepare.compact import compact
from crossfade.trainer.prepare.forget import forget_in_lineage
from crossfade.trainer.prepare.options import CompactOptions

pytestmark = pytest.mark.slow

ENTITIES = ("customer", "track", "artist", "device", "place")
OPTIONS: dict[str, Any] = {
    "item": "track",
    "weight": "weight",
    "timestamp": "at",
    "context": "device=device",
    "admit": "customer=2",
    "expire_after": "120",
    "hold_out_valid": "random:0.1",
    "hold_out_test": "random:0.1",
}


def events(day: int, count: int = 600) -> dict[str, list[Any]]:
    """Return events of a day of 100 seconds: of old IDs, some of them of the first day only, and of new ones."""
    draw = random.Random(day)
    old = [f"c{number}" for number in range(30)] + ([f"gone{number}" for number in range(5)] if day == 0 else [])
    customers = old + [f"new{day}-{number}" for number in range(3 * day)]
    tracks = [*range(40), *(range(900, 905) if day == 0 else range(100 * day, 100 * day + 8))]
    found: dict[str, list[Any]] = {
        "customer": [draw.choice(customers) for _ in range(count)],
        "track": [draw.choice(tracks) for _ in range(count)],
        "weight": [draw.choice([1.0, 1.0, 2.5, -1.0]) for _ in range(count)],
        "at": [100 * day + draw.randrange(100) for _ in range(count)],
        "device": [draw.choice(["phone", "car", f"tv{day}", None]) for _ in range(count)],
        "place": [draw.choice(["home", "work"]) for _ in range(count)],
    }
    once = {"customer": f"once{day}", "track": 1, "weight": 1.0, "at": 100 * day, "device": "phone", "place": "home"}
    return {column: [*values, once[column]] for column, values in found.items()}


def prepare_day(folder: Path, day: int, base: Path | None = None, name: str | None = None) -> Path:
    """Prepare the events of a day; the context ``place`` is that of later days only, the artist of tracks changes."""
    out = folder / (name or f"day{day}")
    raw = write_parquet(folder / f"raw{day}.parquet", **events(day))
    lines = [f"{track},{'Name' if track % 2 else ''}{track},artist{(track + day) % 7}" for track in range(950)]
    (folder / f"tracks{day}.csv").write_text("\n".join(["track,title,artist", *lines]))
    heard = list(range(day * 50, 900))
    sounds = write_parquet(folder / f"audio{day}.parquet", track=heard, audio=[[float(track), 1.0] for track in heard])
    of_day: dict[str, Any] = {
        "names": f"track={folder}/tracks{day}.csv:track:title",
        "features": [f"track={folder}/tracks{day}.csv:track:artist"],
        "content": [f"track={sounds}:track:audio"],
        "base": None if base is None else str(base),
    }
    if day:
        of_day["context"] = "device=device", "place=place"
    prepare_files(out, raw, **{**OPTIONS, **of_day})
    return out


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare three days; forget a customer in all of them, and another one in the last only. Compact the last.

    A run has trained on the first day, and another one on the last from there.
    """
    folder = tmp_path_factory.mktemp("chain")
    base = None
    for day in range(3):
        base = prepare_day(folder, day, base)
    model = {"dim": 8, "item_features": ["track", "artist"]}
    write_job(folder / "job.yaml", folder / "day0", model=model)
    train(folder, "first")
    forget_in_lineage(Folder(folder / "day2"), pa.array(["c3"]), "customer", NullReporter())
    forget_dataset(Folder(folder / "day2"), pa.array(["c5"]), "customer", NullReporter())
    train(folder, "old", "day2", "first")
    compact(CompactOptions.of(data=folder / "day2", out=folder / "compact", threads=2))
    return folder


def train(folder: Path, run: str, data: str | None = None, start: str | None = None) -> None:
    """Train the job of ``folder`` on the dataset ``data`` there, from the checkpoints of the run ``start``."""
    options = [f"data.path={folder / data}"] if data else []
    options += [f"checkpoint.warm_start_from={folder / start / 'checkpoints'}"] if start else []
    changes = [word for option in options for word in ("--set", option)]
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", run, *changes, cwd=folder))


@pytest.fixture
def copied(chain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chain, tmp_path / "chain"))


def opened(data: Path | str) -> LineageReader:
    folder = Folder(str(data))
    return LineageReader(folder, read_manifest(folder))


def known(data: Path, *, timestamps: bool = True) -> Counter[tuple[Any, ...]]:
    """Return the interactions of all splits that are known, as a multiset of rows, weight, and time."""
    with closing(opened(data)) as lineage:
        return Counter(
            (int(query), int(item), float(weight), None if part.timestamp_N is None else int(part.timestamp_N[index]))
            for part in lineage.read_known(ALL_SPLITS, timestamps=timestamps)
            for index, (query, item, weight) in enumerate(zip(part.query_N, part.item_N, part.weight_N, strict=True))
        )


def by_split(data: Path) -> Counter[tuple[Any, ...]]:
    """Return the interactions with split and context, as a multiset."""
    with closing(opened(data)) as lineage:
        return Counter(
            (split, *(float(column[index]) for column in (part.query_N, part.item_N, part.weight_N)), *rest)
            for split, part in lineage.read_splits(timestamps=True)
            for index, rest in enumerate(np.column_stack([part.timestamp_N, part.context_NK]).tolist())  # type: ignore[list-item]
        )


def counts(data: Path, entity: str) -> list[int]:
    with closing(opened(data)) as lineage:
        return lineage.counts(entity).tolist()


def without(rows: list[dict[str, Any]], *columns: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in columns} for row in rows]


def test_interactions_of_all_datasets_are_in_their_splits(chain: Path) -> None:
    expected = by_split(chain / "day2")
    assert known(chain / "compact") == known(chain / "day2")
    assert by_split(chain / "compact") == expected
    manifest = read_manifest(Folder(chain / "compact"))
    assert {name: split.rows for name, split in manifest.splits.items()} == Counter(
        split for split, *_ in expected.elements()
    )
    assert manifest.base is None
    stored = sum(split.rows for day in range(3) for split in read_manifest(Folder(chain / f"day{day}")).splits.values())
    assert manifest.source["dropped_expired"] == stored - expected.total() > 0


def test_vocabularies_are_those_of_the_newest_dataset_with_counts_of_all(chain: Path) -> None:
    for entity in ENTITIES:
        found, newest = (vocabulary(chain / name, entity) for name in ("compact", "day2"))
        assert without(found, "count", "former_count") == without(newest, "count")
        assert counts(chain / "compact", entity) == counts(chain / "day2", entity)
    customers = vocabulary(chain / "compact", "customer")
    assert {None, "new2-0"} <= {row["id"] for row in customers}
    assert not {"gone0", "c3", "c5"} & {row["id"] for row in customers}
    in_train = Counter(customer for customer, _, weight, *_ in interactions(chain / "compact", "train") if weight > 0)
    assert {row["id"]: row["count"] for row in customers if row["id"]} == {
        row["id"]: in_train[row["id"]] for row in customers if row["id"]
    }
    # Plays of tracks that have expired since count, although they are left out.
    assert sum(row["former_count"] for row in customers) > 0


def test_rest_is_that_of_the_newest_dataset(chain: Path) -> None:
    old, new = (read_manifest(Folder(chain / name)) for name in ("day2", "compact"))
    same = ("query", "item", "context", "has_timestamp", "is_grouped", "co_occurrence")
    assert {name: getattr(new, name) for name in same} == {name: getattr(old, name) for name in same}
    assert new.lineage == [*old.lineage, data_fingerprint(Folder(chain / "day2"))]
    vacant = [{name: entity.vacant_rows for name, entity in of.entities.items()} for of in (old, new)]
    assert vacant[0] == vacant[1]
    assert vacant[0]["customer"]

    def stored(name: str, manifest: DatasetManifest) -> list[Any]:
        files = [
            *manifest.features["track"]["artist"].files,
            *manifest.content["track"]["audio"].files,
            *manifest.entities["customer"].pending,
        ]
        return [pq.read_table(chain / name / file.path).to_pydict() for file in files]

    assert stored("compact", new) == stored("day2", old)
    scaling = [(column.mean, column.std) for column in (of.content["track"]["audio"] for of in (old, new))]
    assert scaling[0] == scaling[1]
    assert "once2" in stored("compact", new)[-1]["id"]


def test_interactions_of_a_customer_are_consecutive_and_customers_in_random_order(chain: Path) -> None:
    for split in ALL_SPLITS:
        customers = [row[0] for row in interactions(chain / "compact", split)]
        first = list(dict.fromkeys(customers))
        assert sum(a != b for a, b in pairwise(customers)) == len(first) - 1
        assert first != sorted(first)


def test_validate_finds_no_problem(chain: Path) -> None:
    assert "no problem" in succeeded(crossfade_here("validate", "compact", cwd=chain)).stdout


def test_extending_either_gives_the_same(chain: Path, tmp_path: Path) -> None:
    bases = {"long": "day2", "short": "compact"}
    day = {name: prepare_day(tmp_path, 3, chain / base, name) for name, base in bases.items()}
    for entity in ENTITIES:
        found = [without(vocabulary(out, entity), "lineage_index") for out in day.values()]
        assert found[0] == found[1]
        assert counts(day["long"], entity) == counts(day["short"], entity)
    for split in ALL_SPLITS:
        assert interactions(day["long"], split) == interactions(day["short"], split)
    assert known(day["long"]) == known(day["short"])
    pending = [read_manifest(Folder(out)).entities["customer"].pending for out in day.values()]
    assert [file.footer_crc32 for file in pending[0]] == [file.footer_crc32 for file in pending[1]]
    # A dataset that extends a compacted one is compacted in turn.
    for out in day.values():
        compact(CompactOptions.of(data=out, out=tmp_path / f"{out.name}-compact", threads=2))
    one, other = tmp_path / "long-compact", tmp_path / "short-compact"
    assert known(one) == known(other) == known(day["long"])
    for entity in ENTITIES:
        assert counts(one, entity) == counts(other, entity) == counts(day["long"], entity)
    assert "no problem" in succeeded(crossfade_here("validate", other)).stdout


def test_run_on_the_compacted_dataset_starts_from_one_on_an_earlier_one(chain: Path) -> None:
    train(chain, "later", "compact", "old")
    train(chain, "latest", "compact", "first")
    assert json.loads((chain / "later" / "report.json").read_text())["metrics"]
    # Rows of the newest dataset were given to their IDs in a dataset that both know: none is reset.
    index = len(read_manifest(Folder(chain / "compact")).lineage) - 1
    folder = Folder(chain / "compact")
    assert not len(Vocabulary(folder, read_manifest(folder), "customer").rows_assigned_after(index))


@pytest.mark.parametrize("source", ["old", "old/checkpoints"])
def test_model_of_the_newest_dataset_works_with_the_compacted_one(chain: Path, source: str) -> None:
    for words in (
        ("--customer", "c1"),
        ("--customer", "c2", "--where", "count > 3", "--popularity-damping", "0.5"),
        ("--history", "1", "2"),
    ):
        command = ("recommend", source, *words, "--json", "--data")
        one, other = (
            json.loads(succeeded(crossfade_here(*command, chain / name, cwd=chain)).stdout)
            for name in ("day2", "compact")
        )
        assert one == other
    near = [
        succeeded(crossfade_here("similar", source, "1", "--data", chain / name, cwd=chain)).stdout
        for name in ("day2", "compact")
    ]
    assert near[0] == near[1]


def test_checkpoint_is_rejected_with_a_compacted_dataset_of_forgotten_customers(
    chain: Path, copied: Path, tmp_path: Path
) -> None:
    (tmp_path / "ids.txt").write_text("c1\n")
    printed = succeeded(crossfade_here("forget", copied / "compact", "--ids", tmp_path / "ids.txt")).stdout
    assert "that it was compacted from" in printed
    assert "no problem" in succeeded(crossfade_here("validate", copied / "compact")).stdout
    source, data = chain / "old" / "checkpoints", copied / "compact"
    result = crossfade_here("recommend", source, "--customer", "c2", "--data", data)
    assert result.returncode == 2
    assert "is another dataset than" in result.stderr


def test_same_input_gives_the_same_bytes(chain: Path, tmp_path: Path) -> None:
    compact(CompactOptions.of(data=chain / "day2", out=tmp_path / "again", threads=1, memory=0.2))
    assert checksums(tmp_path / "again") == checksums(chain / "compact")
    assert (tmp_path / "again/manifest.json").read_bytes() == (chain / "compact/manifest.json").read_bytes()


def test_dataset_without_base_and_without_times_is_compacted(tmp_path: Path) -> None:
    raw = write_parquet(tmp_path / "raw.parquet", customer=["a", "b", "a"], item=[1, 1, 2])
    prepare_files(tmp_path / "one", raw, hold_out_valid="none", order="random")
    manifest = compact(CompactOptions.of(data=tmp_path / "one", out=tmp_path / "two"))
    assert (manifest.has_timestamp, manifest.is_grouped, manifest.source["datasets"]) == (False, False, 1)
    assert sorted(interactions(tmp_path / "two", "train")) == sorted(interactions(tmp_path / "one", "train"))


def test_output_that_is_read_or_exists_is_rejected(chain: Path, copied: Path) -> None:
    before = checksums(copied)
    for data in ("day2", "day0"):
        words = ("compact", "day2", "--out", f"./{data}", "--overwrite")
        rejected_here("which is read; choose another folder", *words, cwd=copied)
    assert crossfade_here("compact", "day2", "--out", "compact", cwd=copied).returncode == 2
    assert checksums(copied) == before
    succeeded(crossfade_here("compact", "day2", "--out", "compact", "--overwrite", cwd=copied))
    assert checksums(copied) == before


def test_missing_base_is_an_error(copied: Path) -> None:
    shutil.rmtree(copied / "day1")
    rejected_here("cannot be used as the base dataset of", "compact", "day2", "--out", "new", cwd=copied)
    assert not (copied / "new").exists()
    # Neither is needed by the compacted dataset.
    shutil.rmtree(copied / "day2")
    assert known(copied / "compact")


def test_dataset_that_changes_meanwhile_is_an_error(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetting(NullReporter):
        def phase(self, name: str, total: int | None, unit: str) -> None:
            if name == "write test":
                forget_dataset(Folder(copied / "day0"), pa.array(["c7"]), "customer", NullReporter())

    with pytest.raises(CrossfadeError) as raised:
        compact(CompactOptions.of(data=copied / "day2", out=copied / "new"), Forgetting())
    assert "has changed since this command began, so the new dataset was" in str(raised.value)
    assert not (copied / "new").exists()


def timed(folder: Path, name: str, base: str | None, timestamp: str | None) -> Path:
    raw = write_parquet(folder / f"{name}.parquet", customer=["a", "b"], item=[1, 2], at=[1, 2])
    location = None if base is None else str(folder / base)
    prepare_files(folder / name, raw, base=location, timestamp=timestamp, hold_out_valid="none")
    return folder / name


def test_base_without_timestamps_is_an_error_unless_they_are_left_out(tmp_path: Path) -> None:
    timed(tmp_path, "one", None, None)
    timed(tmp_path, "two", "one", "at")
    rejected_here("its interactions have no timestamps, but those of", "compact", "two", "--out", "new", cwd=tmp_path)
    succeeded(crossfade_here("compact", "two", "--without-timestamps", "--out", "new", cwd=tmp_path))
    assert read_manifest(Folder(tmp_path / "new")).has_timestamp is False
    assert sorted(interactions(tmp_path / "new", "train")) == [("a", 1, 1.0)] * 2 + [("b", 2, 1.0)] * 2


def test_context_value_that_was_forgotten_in_the_newest_dataset_only_is_none(tmp_path: Path) -> None:
    base = None
    for day, customers in enumerate((["a", "b", "c"], ["a", "b"])):
        columns = {
            "customer": customers,
            "item": [1] * len(customers),
            "device": ["tv", "car", "car"][: len(customers)],
        }
        raw = write_parquet(tmp_path / f"{day}.parquet", **columns)
        prepare_files(tmp_path / f"day{day}", raw, base=base, context="device=device", hold_out_valid="none")
        base = str(tmp_path / f"day{day}")
    forget_dataset(Folder(tmp_path / "day1"), pa.array(["b"]), "customer", NullReporter())
    compact(CompactOptions.of(data=tmp_path / "day1", out=tmp_path / "new"))
    assert [row["id"] for row in vocabulary(tmp_path / "new", "device")].count(None) == 1
    devices = {(customer, device < 0) for customer, _, _, device in interactions(tmp_path / "new", "train")}
    assert devices == {("a", False), ("c", True)}
    assert "no problem" in succeeded(crossfade_here("validate", tmp_path / "new")).stdout


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    (tmp_path / "store").mkdir()
    with running_object_store(tmp_path / "store") as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        yield Folder(server.uri("chain"))


def test_datasets_on_s3_give_the_same(s3: Folder, chain: Path) -> None:
    for path in chain.rglob("*"):
        if path.is_file() and path.relative_to(chain).parts[0] in ("day0", "day1", "day2"):
            s3.write(str(path.relative_to(chain)), path.read_bytes())
    compact(CompactOptions.of(data=f"{s3.uri}/day2", out=f"{s3.uri}/compact"))
    folders = s3.child("compact"), Folder(chain / "compact")
    found, expected = ([file.footer_crc32 for file in read_manifest(folder).files()] for folder in folders)
    assert found == expected
    assert np.array_equal(counts(Path(chain / "compact"), "track"), opened(f"{s3.uri}/compact").counts("track"))
