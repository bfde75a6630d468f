"""Admission of new ids after enough events over several datasets, and expiry of ids that are not seen for long."""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import forget_dataset, vocabulary_tuples

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest, read_manifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.time_values import TimeSpan
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.prepare.option_values import FeatureFile
from crossfade.trainer.prepare.options import PrepareOptions, ValidateOptions
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.prepare.validate import validate

pytestmark = pytest.mark.slow

Event = tuple[str, int, int]
ADMIT = {"customer": 2, "item": 3}
MAX_AGE = TimeSpan.parse("20")


def day(folder: Path, name: str, events: list[Event], **options: Any) -> Path:
    """Prepare a dataset of events: customers, items and times."""
    customers, items, times = map(list, zip(*events, strict=True))
    raw = folder / f"{name}-{len(list(folder.iterdir()))}.parquet"
    pq.write_table(pa.table({"customer": customers, "item": items, "at": times}), raw)
    prepare(
        PrepareOptions.of(
            out=folder / name, train=[raw], threads=2, **{"timestamp": "at", "hold_out_valid": "none", **options}
        )
    )
    return folder / name


def pending(data: Path, entity: str) -> list[tuple[Any, ...]]:
    files = read_manifest(Folder(data)).entities[entity].pending
    return [tuple(row.values()) for file in files for row in pq.read_table(data / file.path).to_pylist()]


def manifest_of(data: Path) -> DatasetManifest:
    return read_manifest(Folder(data))


@dataclass
class Side:
    """A reference implementation of the rules for one side."""

    admit: int
    ids: list[Any] = field(default_factory=list)
    seen: dict[Any, int] = field(default_factory=dict)
    lineage_index: list[int] = field(default_factory=list)
    pending_ids: dict[Any, tuple[int, int]] = field(default_factory=dict)

    def count(self, events: list[tuple[Any, int]]) -> set[Any]:
        """Count events and return the admitted ids."""
        for key, at in events:
            count, last = self.pending_ids.get(key, (0, -99))
            self.pending_ids[key] = count + (at > self.before.get(key, -99)), max(last, at)
        return {key for key, (count, _) in self.pending_ids.items() if key in self.ids or count >= self.admit}

    def start_day(self) -> None:
        self.before = {key: last for key, (_, last) in self.pending_ids.items()}

    def assign_rows(self, counts: Counter[Any], cutoff: int, index: int) -> None:
        """Expire ids, and assign rows to new ones."""
        for row, key in enumerate(self.ids):
            if key in self.pending_ids:
                self.seen[key] = max(self.seen[key], self.pending_ids[key][1])
            if key is not None and key not in counts and self.seen[key] < cutoff:
                self.ids[row] = None
        free = [row for row, key in enumerate(self.ids) if key is None]
        for key in sorted(set(counts) - set(self.ids), key=lambda key: (-counts[key], key)):
            if free:
                row = free.pop(0)
                self.ids[row], self.lineage_index[row] = key, index
            else:
                self.ids.append(key)
                self.lineage_index.append(index)
            self.seen[key] = self.pending_ids[key][1]
        self.pending_ids = {
            key: (count, last)
            for key, (count, last) in self.pending_ids.items()
            if key not in self.ids and last >= cutoff
        }


@pytest.mark.slow
def test_rows_over_seven_days_match_reference_implementation(tmp_path: Path) -> None:
    draw, data = random.Random(1), None
    sides = {name: Side(minimum) for name, minimum in ADMIT.items()}
    reused = 0
    for number in range(7):
        # Days overlap by a third, and ids drift: some appear, some stay away.
        last = 15 * number
        events = [
            (f"c{draw.randrange(9) + 2 * number:02d}", draw.randrange(12) + 3 * number, last + draw.randrange(-5, 10))
            for _ in range(40)
        ]
        earlier = {} if data is None else {"base": str(data)}
        data = day(tmp_path, f"day{number}", events, admit=ADMIT, expire_after=dict.fromkeys(ADMIT, MAX_AGE), **earlier)
        admitted = []
        for index, side in enumerate(sides.values()):
            side.start_day()
            admitted.append(side.count([(event[index], event[2]) for event in events]))
        kept = [event for event in events if event[0] in admitted[0] and event[1] in admitted[1]]
        cutoff = max(event[2] for event in events) - 20
        for index, (name, side) in enumerate(sides.items()):
            counts = Counter(event[index] for event in kept)
            side.assign_rows(counts, cutoff, number)
            entity = manifest_of(data).entities[name]
            table = Vocabulary(Folder(data), manifest_of(data), name).read(
                0, entity.rows, ["id", "count", "last_seen", "lineage_index"]
            )
            assert table.column("id").to_pylist() == side.ids
            assert table.column("count").to_pylist() == [counts[key] for key in side.ids]
            seen = [side.seen[key] if key is not None else None for key in side.ids]
            assert table.column("last_seen").to_pylist() == seen
            indices = table.column("lineage_index").to_pylist()
            found_indices = [index for index, key in zip(indices, side.ids, strict=True) if key]
            assert found_indices == [index for index, key in zip(side.lineage_index, side.ids, strict=True) if key]
            assert entity.vacant_rows == [row for row, key in enumerate(side.ids) if key is None]
            assert pending(data, name) == sorted((key, *waits) for key, waits in side.pending_ids.items())
            reused += int(manifest_of(data).source.get(f"{name}_reused") or 0)
        facts = manifest_of(data).source
        assert facts["dropped_pending"] == len(events) - len(kept)
        assert manifest_of(data).splits["train"].rows == len(kept)
        assert len(manifest_of(data).lineage) == number
        validation = validate(ValidateOptions.of(data=data), NullReporter())
        assert validation.problems.listed == []
    assert reused > 3, "the test reuses too few rows to check that"
    forget_dataset(
        Folder(data), pa.array([next(key for key in sides["customer"].ids if key)]), "customer", NullReporter()
    )
    assert validate(ValidateOptions.of(data=data), NullReporter()).problems.listed == []


def test_admission_without_timestamps_counts_every_event_and_is_deterministic(tmp_path: Path) -> None:
    first = day(tmp_path, "first", [("a", 1, 0), ("a", 1, 0), ("b", 2, 0)], admit={"item": 2}, timestamp=None)
    assert pending(first, "item") == [(2, 1, None)]
    options: dict[str, Any] = {"admit": {"item": 2}, "base": str(first), "timestamp": None}
    events = [("a", 1, 0), ("b", 2, 0), ("c", 5, 0), ("c", 4, 0)]
    one = day(tmp_path, "one", events, **options)
    assert vocabulary_tuples(one, "item") == [(0, 1, 1), (1, 2, 1)]
    assert pending(one, "item") == [(4, 1, None), (5, 1, None)]
    two = day(tmp_path, "two", events, **options, memory=0.25)
    for path in one.rglob("*.parquet"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_forget_removes_pending_ids_and_expiry_reuses_vacant_rows(tmp_path: Path) -> None:
    first = day(
        tmp_path, "first", [("a", 1, 0), ("a", 1, 0), ("b", 1, 0), ("b", 1, 1), ("w", 1, 0)], admit={"customer": 2}
    )
    fingerprint = manifest_of(first)
    forgotten = forget_dataset(Folder(first), pa.array(["a", "w", "?"]), "customer", NullReporter())
    assert (forgotten.found, forgotten.pending) == (1, 1)
    assert pending(first, "customer") == []
    assert len(manifest_of(first).lineage) == len(fingerprint.lineage) + 1
    events = [("b", 1, 5), ("n", 1, 5), ("n", 1, 6), ("m", 1, 6)]
    later = day(tmp_path, "later", events, base=str(first))
    assert vocabulary_tuples(later, "customer") == [(0, None, 0), (1, "b", 1), (2, "n", 2), (3, "m", 1)]
    again = day(tmp_path, "again", events, base=str(first), expire_after={"customer": MAX_AGE})
    assert vocabulary_tuples(again, "customer") == [(0, "n", 2), (1, "b", 1), (2, "m", 1)]
    assert manifest_of(again).entities["customer"].vacant_rows == []


def test_reused_row_has_no_features_of_expired_id(tmp_path: Path) -> None:
    tags = tmp_path / "tags.parquet"
    pq.write_table(pa.table({"id": [1, 2], "tag": ["old", "both"]}), tags)
    features = [FeatureFile("item", tags, "id", {"tag": "tag"})]
    events = [("a", 1, 0), ("a", 2, 0), ("a", 2, 0), ("a", 1, 0), ("a", 1, 0)]
    options = {"expire_after": {"item": MAX_AGE}}
    first = day(tmp_path, "first", events, features=features, **options)
    second = day(tmp_path, "second", [("a", 9, 30), ("a", 2, 30)], base=str(first), **options)
    assert vocabulary_tuples(second, "item") == [(0, 9, 1), (1, 2, 1)]
    vocabulary = Vocabulary(Folder(second), manifest_of(second), "item")
    assert vocabulary.total_counts().tolist() == [1, 3]
    assert vocabulary.rows_assigned_after(0).tolist() == [0]
    [file] = manifest_of(second).features["item"]["tag"].files
    pairs = pq.read_table(second / file.path).to_pylist()
    assert [(pair["row"], vocabulary_tuples(second, "tag")[pair["value"]][1]) for pair in pairs] == [(1, "both")]
    assert validate(ValidateOptions.of(data=second), NullReporter()).problems.listed == []


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("customer=2,item=9: leaves no interaction", {"admit": {"customer": 2, "item": 9}}),
        (
            "90d: is counted in seconds, but the timestamps reach",
            {"expire_after": {"item": TimeSpan.parse("90d")}, "timestamp": "ms"},
        ),
    ],
)
def test_admission_and_expiry_that_the_events_rule_out_are_rejected(
    tmp_path: Path, what: str, options: dict[str, Any]
) -> None:
    raw = tmp_path / "events.parquet"
    pq.write_table(pa.table({"customer": [1, 1], "item": [1, 2], "at": [1, 2], "ms": [10**12, 10**12]}), raw)
    with pytest.raises(InputError) as caught:
        prepare(PrepareOptions.of(**{"out": tmp_path / "out", "train": [raw], "timestamp": "at", **options}))
    assert what in str(caught.value)
    assert not (tmp_path / "out").exists()
