"""Context of events: columns and values derived from time, as rows of vocabularies in the splits."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import forget_dataset, prepare_files, vocabulary_tuples, write_parquet, write_text

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.prepare.options import ValidateOptions
from crossfade.trainer.prepare.validate import validate

pytestmark = pytest.mark.slow

HOUR, DAY = 3600, 86_400
NO_HOLD_OUT = {"hold_out_valid": "none"}


def events(data: Path, split: str = "train") -> list[dict[str, Any]]:
    """Return the interactions of ``split`` with IDs in place of rows, ordered by time; None for no context."""
    manifest = read_manifest(Folder(data))
    names = [manifest.query, manifest.item, *manifest.context]
    ids = {name: [row[1] for row in vocabulary_tuples(data, name)] for name in names}
    found = [
        row | {name: ids[name][row[name]] if row[name] >= 0 else None for name in names}
        for file in manifest.splits[split].files  # type: ignore[index]
        for row in pq.read_table(data / file.path).to_pylist()
    ]
    return sorted(found, key=lambda row: (row.get("timestamp", 0), row[manifest.query]))


@pytest.fixture
def plays(tmp_path: Path) -> Path:
    """Six plays of two customers; the first of 1969, one without a device, one of a device that train lacks."""
    times = [-HOUR, 0, 17 * HOUR + 59, 3 * DAY + 5 * HOUR, 4 * DAY, 5 * DAY + 23 * HOUR]
    return write_parquet(
        tmp_path / "plays.parquet",
        customer=["a", "a", "b", "a", "b", "b"],
        item=[1, 2, 3, 4, 5, 6],
        at=times,
        device=["car", "phone", None, "car", "", "boat"],
        room=[7, 7, 8, 7, 8, 8],
    )


def test_columns_and_hours_are_rows_of_their_vocabularies(tmp_path: Path, plays: Path) -> None:
    context = {"hour": "timestamp:hour", "weekday": "timestamp:weekday", "device": "device", "place": "room"}
    manifest = prepare_files(
        tmp_path / "out", plays, timestamp="at", context=context, hold_out_test=f"after:{5 * DAY}", **NO_HOLD_OUT
    )
    assert manifest.context == list(context)
    found = {name: [row[name] for row in events(tmp_path / "out")] for name in context}
    assert found == {
        "hour": [23, 0, 17, 5, 0],
        "weekday": [3, 4, 4, 7, 1],
        "device": ["car", "phone", None, "car", None],
        "place": [7, 7, 8, 7, 8],
    }
    assert [(row["hour"], row["device"]) for row in events(tmp_path / "out", "test")] == [
        (23, None)
    ]  # no such device in train
    # The most frequent first, then by value; the device of the test split has no row.
    assert vocabulary_tuples(tmp_path / "out", "device") == [(0, "car", 2), (1, "phone", 1)]
    assert vocabulary_tuples(tmp_path / "out", "hour") == [(0, 0, 2), (1, 5, 1), (2, 17, 1), (3, 23, 1)]
    assert not validate(ValidateOptions.of(data=tmp_path / "out"), NullReporter()).problems.count


def test_column_of_event_weights_is_context_too(tmp_path: Path) -> None:
    columns = {"customer": ["a", "a", "b", "b"], "item": [1, 2, 1, 3], "action": ["play", "like", "skip", "like"]}
    raw = write_parquet(tmp_path / "plays.parquet", **columns)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    csv = write_text(tmp_path / "plays.csv", "\n".join(lines) + "\n")
    options = {"event": "action", "event_weights": {"play": 1, "like": 3, "skip": 0}, **NO_HOLD_OUT}
    for number, file in enumerate((raw, csv)):
        out = tmp_path / f"out{number}"
        prepare_files(out, file, context={"kind": "action"}, **options)
        assert [(row["item"], row["weight"], row["kind"]) for row in events(out)] == [
            (1, 1.0, "play"),
            (2, 3.0, "like"),
            (3, 3.0, "like"),
        ]


def test_previous_item_crosses_splits_and_follows_time(tmp_path: Path) -> None:
    table = {"customer": ["a", "b", "a", "a", "b", "a"], "item": [4, 9, 2, 1, 4, 1], "at": [40, 5, 20, 30, 6, 10]}
    raw = write_parquet(tmp_path / "plays.parquet", **table)
    prepare_files(
        tmp_path / "out",
        raw,
        timestamp="at",
        context={"before": "timestamp:previous"},
        hold_out_test="last-1",
        **NO_HOLD_OUT,
    )
    pairs = [
        {(row["customer"], row["item"]): row["before"] for row in events(tmp_path / "out", split)}
        for split in ("train", "test")
    ]
    assert pairs[0] == {("a", 1): 2, ("a", 2): 1, ("b", 9): None}
    assert pairs[1] == {("a", 4): 1, ("b", 4): None}  # 9 is in no context of train


def test_extending_keeps_rows_of_context(tmp_path: Path, plays: Path) -> None:
    prepare_files(tmp_path / "first", plays, context={"device": "device"}, **NO_HOLD_OUT)
    assert [row[1] for row in vocabulary_tuples(tmp_path / "first", "device")] == ["car", "boat", "phone"]
    raw = write_parquet(tmp_path / "day2.parquet", customer=["a", "c"], item=[1, 9], device=["phone", "amp"])
    prepare_files(tmp_path / "second", raw, context={"device": "device"}, base=str(tmp_path / "first"), **NO_HOLD_OUT)
    assert [row[:2] for row in vocabulary_tuples(tmp_path / "second", "device")] == [
        (0, "car"),
        (1, "boat"),
        (2, "phone"),
        (3, "amp"),
    ]
    with pytest.raises(InputError) as caught:
        prepare_files(tmp_path / "third", raw, base=str(tmp_path / "first"), **NO_HOLD_OUT)
    assert "its events have the context 'device', but these have none" in str(caught.value)


def test_forgetting_a_customer_empties_context_that_nobody_else_has(tmp_path: Path, plays: Path) -> None:
    prepare_files(tmp_path / "out", plays, context={"device": "device", "place": "room"}, **NO_HOLD_OUT)
    folder = Folder(tmp_path / "out")
    forget_dataset(folder, pa.array(["b"]), "customer", NullReporter())
    assert vocabulary_tuples(tmp_path / "out", "device") == [(0, "car", 2), (1, None, 0), (2, "phone", 1)]
    assert vocabulary_tuples(tmp_path / "out", "place") == [(0, 7, 3), (1, None, 0)]
    assert not validate(ValidateOptions.of(data=folder.uri), NullReporter()).problems.count
    with pytest.raises(InputError) as caught:
        forget_dataset(folder, pa.array(["car"]), "device", NullReporter())
    assert "has no ids of 'device' to forget" in str(caught.value)


@pytest.mark.parametrize(
    ("cause", "options"),
    [
        (
            "hour=timestamp:hour: requires seconds since 1970, but the",
            {"context": "hour=timestamp:hour", "timestamp": "ms"},
        ),
        ("nothing=nothing: no event of train has a value", {"context": "nothing=nothing"}),
        ("has no column 'devise' (did you mean 'device'?)", {"context": "device=devise"}),
        ("of column 'odd' has a control character", {"context": "device=odd"}),
    ],
)
def test_context_that_cannot_be_prepared_is_rejected(tmp_path: Path, cause: str, options: dict[str, str]) -> None:
    raw = write_parquet(
        tmp_path / "plays.parquet",
        customer=["a", "b"],
        item=[1, 2],
        ms=[1_700_000_000_000, 1_700_000_000_001],
        device=["car", "car"],
        odd=["x\x07", None],
        nothing=pa.array([None, None], pa.string()),
    )
    with pytest.raises(InputError) as caught:
        prepare_files(tmp_path / "out", raw, **options)
    assert cause in str(caught.value)
    assert not (tmp_path / "out").exists()
