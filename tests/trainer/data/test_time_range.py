"""Time ranges: exactly their interactions are read, each once per epoch, however they are distributed."""

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from builders import ITEM, QUERY, make_interactions, write_data_set, write_groups, write_vocabulary

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import DatasetManifest, Split
from crossfade.trainer.data.parquet import file_entry
from crossfade.trainer.data.reader import InteractionReader, row_groups, weigh_by_age
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.schedule import BatchSchedule
from crossfade.trainer.data.time_values import TimeSpan
from crossfade.trainer.runs.job_inputs import RowSelection, load_inputs, select_rows

QUERIES, ITEMS = 11, 13
DAY = 86_400
FIRST = 1_704_067_200
"""2024-01-01, UTC."""
FILES = ([range(40), range(40, 47)], [range(47, 100)], [range(100, 101), range(101, 160), range(160, 160)])


def write_timed(folder: Path, *, unit: int = 1, clustered: bool = True, timed: bool = True) -> DatasetManifest:
    """Write interactions of which number n has weight n and is n days after the first; ``clustered``: in that order."""
    order = np.arange(160) if clustered else np.random.default_rng(1).permutation(160)
    files = []
    for number, groups in enumerate(FILES):
        path = f"train/part-{number:05d}.parquet"
        tables = [timed_table(order[group.start : group.stop], unit, timed) for group in groups]
        write_groups(folder / path, tables)
        files.append(file_entry(Folder(folder), path))
    entities = {
        QUERY: write_vocabulary(folder, QUERY, range(QUERIES)),
        ITEM: write_vocabulary(folder, ITEM, range(ITEMS)),
    }
    manifest = DatasetManifest(
        query=QUERY, item=ITEM, entities=entities, splits={"train": Split(files=files)}, has_timestamp=timed
    )
    manifest.write(Folder(folder))
    return manifest


def timed_table(numbers: Any, unit: int, timed: bool) -> pa.Table:
    columns = {
        QUERY: pa.array(numbers % QUERIES, pa.int64()),
        ITEM: pa.array(numbers * 7 % ITEMS, pa.int64()),
        "weight": pa.array(numbers.astype(np.float32)),
    }
    if timed:
        columns["timestamp"] = pa.array((FIRST + numbers * DAY) * unit, pa.int64())
    return pa.table(columns)


def load_job_arguments(folder: Path, **data: Any) -> JobConfig:
    return check_job({"name": "timed", "data": {"path": str(folder), **data}}, "test")


def selected(folder: Path, manifest: DatasetManifest, **data: Any) -> RowSelection:
    return select_rows(load_job_arguments(folder, **data), Folder(folder), manifest, NullReporter())


def numbers_read(folder: Path, manifest: DatasetManifest, selection: RowSelection, workers: int = 2) -> Counter[int]:
    """Return which interactions the workers read in an epoch, and how often."""
    read: Counter[int] = Counter()
    with closing(InteractionReader(Folder(folder), manifest)) as reader:
        schedule = BatchSchedule(reader, selection.groups, batch_size=10, partitions=3, shuffle_block_rows=30, seed=1)
        for rank in range(workers):
            for share in schedule.slices(0, 0, rank, workers):
                read.update(share.interactions.weight_N.astype(int).tolist())
    return read


@pytest.mark.parametrize("clustered", [True, False], ids=["clustered", "scattered"])
@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (FIRST + 45 * DAY, None, range(45, 160)),
        (None, FIRST + 45 * DAY, range(45)),
        (FIRST + 45 * DAY, FIRST + 46 * DAY, range(45, 46)),
        (FIRST + 45 * DAY + 1, FIRST + 46 * DAY + 1, range(46, 47)),
        ("2024-02-15", "2024-04-10", range(45, 100)),
        ("2024-02-15T00:00:00.5", "2024-02-16T01:00:00+01:00", range(0)),
        ("2024-02-14T23:30:00-00:30", "2024-02-15T00:00:00.5", range(45, 46)),
        (-(2**62), 2**62, range(160)),
    ],
)
def test_interactions_in_time_range_are_read_exactly_once(
    tmp_path: Path, since: Any, until: Any, expected: range, clustered: bool
) -> None:
    manifest = write_timed(tmp_path, clustered=clustered)
    if not expected:
        with pytest.raises(InputError, match=r"no interaction of .* is in the time range \(its timestamps run from"):
            selected(tmp_path, manifest, since=since, until=until)
        return
    selection = selected(tmp_path, manifest, since=since, until=until)
    assert selection.rows == len(expected)
    assert numbers_read(tmp_path, manifest, selection) == Counter(expected)


def test_dates_and_spans_are_rejected_for_timestamps_not_in_seconds(tmp_path: Path) -> None:
    manifest = write_timed(tmp_path, unit=1000)
    with pytest.raises(
        InputError, match=r"data.since 2024-02-15: a date is compared in seconds, but the timestamps of"
    ):
        selected(tmp_path, manifest, since="2024-02-15")
    selection = selected(tmp_path, manifest, since=(FIRST + 45 * DAY) * 1000)
    assert selection.rows == 160 - 45
    job = load_job_arguments(tmp_path)
    job = job.model_copy(update={"train": job.train.model_copy(update={"half_life": "10d"})})
    with pytest.raises(InputError, match=r"train.half_life is 10d, which is counted in seconds, but the"):
        select_rows(job, Folder(tmp_path), manifest, NullReporter())


def test_empty_train_split_is_rejected(tmp_path: Path) -> None:
    write_data_set(tmp_path, {"train": [[make_interactions([], [])]]}, queries=QUERIES, items=ITEMS)
    with pytest.raises(InputError, match=f"^{tmp_path}: its train split is empty"):
        load_inputs(load_job_arguments(tmp_path))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"since": "yesterday"}, "'yesterday' is neither an integer nor an ISO date such as 2024-05-31"),
        ({"since": 5, "until": 5}, "since '5' is not before until '5': the time range is empty"),
        ({"since": "2024-05-31", "until": "2024-05-30"}, "since '2024-05-31' is not before until '2024-05-30'"),
        ({"since": 1.5}, "data.since"),
        ({"until": True}, "data.until"),
    ],
)
def test_invalid_time_is_rejected_with_the_job(tmp_path: Path, data: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match="test: data") as caught:
        load_job_arguments(tmp_path, **data)
    assert expected in str(caught.value)


@pytest.mark.parametrize("since", [FIRST + DAY, FIRST + 45 * DAY])
def test_weights_halve_with_age_and_average_one(tmp_path: Path, since: int) -> None:
    manifest = write_timed(tmp_path, clustered=False)
    job = load_job_arguments(tmp_path, since=since)
    job = job.model_copy(update={"train": job.train.model_copy(update={"half_life": "10d"})})
    selection = select_rows(job, Folder(tmp_path), manifest, NullReporter())
    factors: dict[int, float] = {}
    with (
        closing(InteractionReader(Folder(tmp_path), manifest)) as plain,
        closing(InteractionReader(Folder(tmp_path), manifest, ages=selection.ages)) as aged,
    ):
        for group in selection.groups:
            number_N, weight_N = plain.read(group).weight_N, aged.read(group).weight_N
            factors |= dict(zip(number_N.astype(int).tolist(), (weight_N / number_N).tolist(), strict=True))
    assert sorted(factors) == list(range((since - FIRST) // DAY, 160))
    assert np.mean(list(factors.values())) == pytest.approx(1)
    for number, factor in factors.items():
        assert factor == pytest.approx(factors[159] * 0.5 ** ((159 - number) / 10))


def test_wrong_timestamp_of_the_future_leaves_the_others_their_weights(tmp_path: Path) -> None:
    times_N = FIRST + np.arange(2_000) * DAY // 10
    times_N[7] = FIRST + 30_000 * DAY
    numbers_N = np.arange(len(times_N))
    table = timed_table(numbers_N, 1, timed=False).append_column("timestamp", pa.array(times_N))
    write_groups(tmp_path / "train/part-00000.parquet", [table])
    entities = {
        QUERY: write_vocabulary(tmp_path, QUERY, range(QUERIES)),
        ITEM: write_vocabulary(tmp_path, ITEM, range(ITEMS)),
    }
    split = Split(files=[file_entry(Folder(tmp_path), "train/part-00000.parquet")])
    manifest = DatasetManifest(query=QUERY, item=ITEM, entities=entities, splits={"train": split}, has_timestamp=True)
    with closing(InteractionReader(Folder(tmp_path), manifest)) as reader:
        ages = weigh_by_age(reader, row_groups(split), TimeSpan.parse("30d"))
    factor_N = ages.factors(times_N)
    assert factor_N[7] == factor_N[-1] == factor_N.max()
    assert factor_N[-1001] == pytest.approx(factor_N[-1] * 0.5 ** (100 / 30), rel=0.02)
