"""Rows for who is new: after so many events, over all days, and those of who was not seen for long before others."""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from error_table import documented
from preparing import vocabulary_tuples as rows_of

from crossfade.options.parsing import parse_minimums, parse_spans
from kvstore.errors import InputError
from kvstore.io.folder import Folder
from trainer.data.manifest import DatasetManifest, read_manifest
from trainer.data.parquet import file_entry
from trainer.data.reporter import NullReporter
from trainer.data.vocabulary import Vocabulary
from trainer.prepare.admission import MaxAge
from trainer.prepare.features import FeatureFile
from trainer.prepare.forget import forget
from trainer.prepare.options import PrepareOptions
from trainer.prepare.pipeline import prepare
from trainer.prepare.validate import validate

Event = tuple[str, int, int]
ADMIT = {"customer": 2, "item": 3}
SPAN = MaxAge.parse("20")


def day(folder: Path, name: str, events: list[Event], **options: Any) -> Path:
    """Prepared data of customers, items and times."""
    customers, items, times = map(list, zip(*events, strict=True))
    raw = folder / f"{name}-{len(list(folder.iterdir()))}.parquet"
    pq.write_table(pa.table({"customer": customers, "item": items, "at": times}), raw)
    prepare(PrepareOptions(out=folder / name, train=[raw], threads=2, **{"timestamp": "at", **options}))
    return folder / name


def pending(data: Path, entity: str) -> list[tuple[Any, ...]]:
    files = read_manifest(Folder(data)).entities[entity].pending
    return [tuple(row.values()) for file in files for row in pq.read_table(data / file.path).to_pylist()]


def manifest_of(data: Path) -> DatasetManifest:
    return read_manifest(Folder(data))


@dataclass
class Side:
    """What the rules say of one side, in plain words of Python."""

    admit: int
    ids: list[Any] = field(default_factory=list)
    seen: dict[Any, int] = field(default_factory=dict)
    since: list[int] = field(default_factory=list)
    waiting: dict[Any, tuple[int, int]] = field(default_factory=dict)

    def sight(self, events: list[tuple[Any, int]]) -> set[Any]:
        """Count; who is admitted."""
        for key, at in events:
            count, last = self.waiting.get(key, (0, -99))
            self.waiting[key] = count + (at > self.before.get(key, -99)), max(last, at)
        return {key for key, (count, _) in self.waiting.items() if key in self.ids or count >= self.admit}

    def begin(self) -> None:
        self.before = {key: last for key, (_, last) in self.waiting.items()}

    def settle(self, counts: Counter[Any], cutoff: int, place: int) -> None:
        """Free rows, and give them out again."""
        for row, key in enumerate(self.ids):
            if key in self.waiting:
                self.seen[key] = max(self.seen[key], self.waiting[key][1])
            if key is not None and key not in counts and self.seen[key] < cutoff:
                self.ids[row] = None
        free = [row for row, key in enumerate(self.ids) if key is None]
        for key in sorted(set(counts) - set(self.ids), key=lambda key: (-counts[key], key)):
            if free:
                row = free.pop(0)
                self.ids[row], self.since[row] = key, place
            else:
                self.ids.append(key)
                self.since.append(place)
            self.seen[key] = self.waiting[key][1]
        self.waiting = {
            key: (count, last) for key, (count, last) in self.waiting.items() if key not in self.ids and last >= cutoff
        }


@pytest.mark.parametrize("seed", [1, 2])
def test_rows_are_given_and_freed_as_the_rules_say_over_seven_days(tmp_path: Path, seed: int) -> None:
    draw, data = random.Random(seed), None
    sides = {name: Side(minimum) for name, minimum in ADMIT.items()}
    reused = 0
    for number in range(7):
        # Days overlap by a third, and everybody drifts: some come, some stay away.
        last = 15 * number
        events = [
            (f"c{draw.randrange(9) + 2 * number:02d}", draw.randrange(12) + 3 * number, last + draw.randrange(-5, 10))
            for _ in range(40)
        ]
        earlier = {} if data is None else {"base": str(data)}
        data = day(tmp_path, f"day{number}", events, admit=ADMIT, expire_after=dict.fromkeys(ADMIT, SPAN), **earlier)
        admitted = []
        for place, side in enumerate(sides.values()):
            side.begin()
            admitted.append(side.sight([(event[place], event[2]) for event in events]))
        kept = [event for event in events if event[0] in admitted[0] and event[1] in admitted[1]]
        cutoff = max(event[2] for event in events) - 20
        for place, (name, side) in enumerate(sides.items()):
            counts = Counter(event[place] for event in kept)
            side.settle(counts, cutoff, number)
            entity = manifest_of(data).entities[name]
            table = Vocabulary(Folder(data), manifest_of(data), name).read(
                0, entity.rows, ["id", "count", "last_seen", "lineage_index"]
            )
            assert table.column("id").to_pylist() == side.ids
            assert table.column("count").to_pylist() == [counts[key] for key in side.ids]
            seen = [side.seen[key] if key is not None else None for key in side.ids]
            assert table.column("last_seen").to_pylist() == seen
            held = [
                since for since, key in zip(table.column("lineage_index").to_pylist(), side.ids, strict=True) if key
            ]
            assert held == [since for since, key in zip(side.since, side.ids, strict=True) if key]
            assert entity.vacant_rows == [row for row, key in enumerate(side.ids) if key is None]
            assert pending(data, name) == sorted((key, *waits) for key, waits in side.waiting.items())
            reused += int(manifest_of(data).source.get(f"{name}_reused") or 0)
        facts = manifest_of(data).source
        assert facts["dropped_pending"] == len(events) - len(kept)
        assert manifest_of(data).splits["train"].rows == len(kept)
        assert len(manifest_of(data).lineage) == number
        found = validate(Folder(data), None, None, None, NullReporter())
        assert found.problems.listed == []
        assert found.notes == []
    assert reused > 3, "or this would hold nothing"


def test_two_events_a_day_are_enough_on_the_third_day(tmp_path: Path) -> None:
    old, data = [("a", 1, 0)] * 5, None
    for number in range(3):
        new = [("a", 7, 10 * number + 1), ("a", 7, 10 * number + 2)]
        earlier = {} if data is None else {"base": str(data)}
        data = day(tmp_path, f"day{number}", [*old, *new], admit={"item": 5}, **earlier)
        found = [row[1] for row in rows_of(data, "item")]
        assert found == ([1] if number < 2 else [1, 7])
        assert pending(data, "item") == ([(7, 2 * number + 2, 10 * number + 2)] if number < 2 else [])
    assert not manifest_of(data).entities["item"].has_last_seen, "nobody asked who was seen when"


def test_without_times_every_event_counts_and_the_same_data_come_out_again(tmp_path: Path) -> None:
    first = day(tmp_path, "first", [("a", 1, 0), ("a", 1, 0), ("b", 2, 0)], admit={"item": 2}, timestamp=None)
    assert pending(first, "item") == [(2, 1, None)]
    options: dict[str, Any] = {"admit": {"item": 2}, "base": str(first), "timestamp": None}
    events = [("a", 1, 0), ("b", 2, 0), ("c", 5, 0), ("c", 4, 0)]
    one = day(tmp_path, "one", events, **options)
    assert rows_of(one, "item") == [(0, 1, 1), (1, 2, 1)]
    assert pending(one, "item") == [(4, 1, None), (5, 1, None)]
    two = day(tmp_path, "two", events, **options, memory_bytes=1 << 28)
    for path in one.rglob("*.parquet"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_who_waits_is_forgotten_and_a_forgotten_row_is_taken_where_rows_expire(tmp_path: Path) -> None:
    first = day(
        tmp_path, "first", [("a", 1, 0), ("a", 1, 0), ("b", 1, 0), ("b", 1, 1), ("w", 1, 0)], admit={"customer": 2}
    )
    fingerprint = manifest_of(first)
    forgotten = forget(Folder(first), pa.array(["a", "w", "?"]), "customer", NullReporter())
    assert (forgotten.found, forgotten.pending) == (1, 1)
    assert pending(first, "customer") == []
    assert len(manifest_of(first).lineage) == len(fingerprint.lineage) + 1
    events = [("b", 1, 5), ("n", 1, 5), ("n", 1, 6), ("m", 1, 6)]
    later = day(tmp_path, "later", events, base=str(first))
    assert rows_of(later, "customer") == [(0, None, 0), (1, "b", 1), (2, "n", 2), (3, "m", 1)]
    again = day(tmp_path, "again", events, base=str(first), expire_after={"customer": SPAN})
    assert rows_of(again, "customer") == [(0, "n", 2), (1, "b", 1), (2, "m", 1)]
    assert manifest_of(again).entities["customer"].vacant_rows == []


def test_who_had_a_row_before_leaves_neither_its_features_nor_its_name(tmp_path: Path) -> None:
    tags = tmp_path / "tags.parquet"
    pq.write_table(pa.table({"id": [1, 2], "tag": ["old", "both"]}), tags)
    features = [FeatureFile("item", tags, "id", {"tag": "tag"})]
    events = [("a", 1, 0), ("a", 2, 0), ("a", 2, 0), ("a", 1, 0), ("a", 1, 0)]
    options = {"expire_after": {"item": SPAN}}
    first = day(tmp_path, "first", events, features=features, **options)
    second = day(tmp_path, "second", [("a", 9, 30), ("a", 2, 30)], base=str(first), **options)
    assert rows_of(second, "item") == [(0, 9, 1), (1, 2, 1)]
    vocabulary = Vocabulary(Folder(second), manifest_of(second), "item")
    assert vocabulary.warm_rows().tolist() == [True, True]
    assert vocabulary.rows_assigned_after(0).tolist() == [0]
    [file] = manifest_of(second).features["item"]["tag"].files
    pairs = pq.read_table(second / file.path).to_pylist()
    assert [(pair["row"], rows_of(second, "tag")[pair["value"]][1]) for pair in pairs] == [(1, "both")]
    assert validate(Folder(second), None, None, None, NullReporter()).problems.listed == []


def test_what_is_wrong_with_who_waits_is_found(tmp_path: Path) -> None:
    data = day(
        tmp_path, "data", [("a", 1, 0), ("a", 1, 0), ("b", 2, 0)], admit={"item": 2}, expire_after={"item": SPAN}
    )
    manifest = manifest_of(data)
    [file] = manifest.entities["item"].pending
    table = pa.table({"id": [1, 2, 2], "count": [1, 0, 1], "last_seen": pa.array([0, None, 0], pa.int64())})
    pq.write_table(table, data / file.path)
    changed = manifest.entities["item"].model_copy(update={"pending": [file_entry(Folder(data), file.path)]})
    manifest.model_copy(update={"entities": {**manifest.entities, "item": changed}}).write(Folder(data))
    found = validate(Folder(data), None, None, None, NullReporter()).problems.listed
    documented("validate: a wrong count of a pending ID", found[0])
    documented("validate: a pending ID with a row", found[1])
    documented("validate: a duplicate pending ID", found[2])
    assert len(found) == 3


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("unknown entity in --admit", {"admit": {"song": 2}}),
        ("--admit with a threshold of 0", {"admit": {"item": 0}}),
        ("--admit that admits no interaction", {"admit": {"customer": 2, "item": 9}}),
        ("--admit with --catalog for one entity", {"admit": {"item": 2}, "catalog": ["item"]}),
        ("--expire-after without --timestamp", {"expire_after": {"item": MaxAge.parse("90d")}, "timestamp": None}),
        (
            "--expire-after in days with timestamps in milliseconds",
            {"expire_after": {"item": MaxAge.parse("90d")}, "timestamp": "ms"},
        ),
    ],
)
def test_admission_and_expiry_that_make_no_sense_are_refused(
    tmp_path: Path, what: str, options: dict[str, Any]
) -> None:
    raw = tmp_path / "events.parquet"
    pq.write_table(pa.table({"customer": [1, 1], "item": [1, 2], "at": [1, 2], "ms": [10**12, 10**12]}), raw)
    if "catalog" in options:
        options["features"] = [FeatureFile("item", raw, "item", {"tag": "at"})]
    with pytest.raises(InputError) as caught:
        prepare(PrepareOptions(**{"out": tmp_path / "out", "train": [raw], "timestamp": "at", **options}))
    documented(what, str(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["0d", "90 days", "-3", "track=", "track=9d,track=8d", "=9d", "1.5d"])
def test_a_span_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--expire-after .*: expected ") as caught:
        parse_spans(text, ("customer", "track"))
    if text == "90 days":
        documented("malformed --expire-after", str(caught.value))


def test_what_the_options_say_is_understood() -> None:
    assert parse_minimums("--admit", ["a=5,b=3", "c=1"]) == {"a": 5, "b": 3, "c": 1}
    with pytest.raises(InputError, match="--admit a=x: expected ENTITY=K"):
        parse_minimums("--admit", ["a=x"])
    both = parse_spans("90d", ("a", "b"))
    assert (both["a"].length, both["b"].in_seconds) == (90 * 86400, True)
    apart = parse_spans("a=36h,b=7", ("a", "b"))
    assert (apart["a"].length, apart["b"].length, apart["b"].in_seconds) == (36 * 3600, 7, False)
    assert parse_spans(None, ("a", "b")) == {}
    assert both["a"].before(10**9) == 10**9 - 90 * 86400


def test_events_at_the_time_last_seen_are_not_counted_twice(tmp_path: Path) -> None:
    admitted = [("z", 9, at) for at in (1, 2, 3)]
    first = day(tmp_path, "first", [*admitted, ("a", 1, 0), ("a", 1, 5), ("b", 2, 5)], admit={"item": 3})
    assert pending(first, "item") == [(1, 2, 5), (2, 1, 5)]
    # The next day begins at the last moment of the first: its events at 5 are those that have been counted.
    events = [*admitted, ("a", 1, 5), ("b", 2, 5), ("b", 2, 6)]
    second = day(tmp_path, "second", events, admit={"item": 3}, base=str(first))
    assert pending(second, "item") == [(1, 2, 5), (2, 2, 6)]
    assert [row[1] for row in rows_of(second, "item")] == [9]
