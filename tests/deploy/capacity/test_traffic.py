"""Planned traffic against that of real batches and runs."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capacity_jobs import plan_of, zipf_job
from command_here import crossfade_here
from preparing import prepare_files, write_parquet
from running_command import succeeded

from crossfade.base.io.folder import Folder
from crossfade.deploy.capacity.plan_inputs import read_inputs
from crossfade.deploy.capacity.traffic import CountHistogram, busiest_bytes, expect_traffic, worker_loads
from crossfade.deploy.topology import Role
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.reader import InteractionReader
from crossfade.trainer.data.schedule import BatchSchedule
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.model.batches import BatchSource, BatchTimers, FrequencyWeighting
from crossfade.trainer.model.negatives import NegativeSampler
from crossfade.trainer.training.state import TrainState

pytestmark = pytest.mark.slow


def count_touched_rows(job: JobConfig, data: Path) -> list[float]:
    """Count the rows of both tables that each worker touches in a step, on average over an epoch of real batches."""
    inputs = read_inputs(job)
    job = inputs.job
    items = inputs.model.item
    counts_N = Vocabulary(Folder(data), inputs.manifest, items.name).counts()
    counts = []
    with closing(InteractionReader(Folder(data), inputs.manifest)) as reader:
        schedule = BatchSchedule(
            reader,
            inputs.selection.groups,
            batch_size=job.train.batch_size,
            partitions=job.data.partitions,
            shuffle_block_rows=job.data.shuffle_block_rows,
            seed=1,
            group_rows=job.data.group_rows,
        )
        sampler = NegativeSampler(job.negatives, items.rows, counts_N, seed=1)
        workers, weighting = job.cluster.workers, FrequencyWeighting(0.0, None, 0.0, None)
        for rank in range(workers):
            source = BatchSource(schedule, sampler, weighting, lambda batch: batch, rank, workers)
            steps = source.remaining(TrainState(), schedule.steps, BatchTimers())
            counts.append(float(np.mean([len(step.query.rows_A) + len(step.item.rows_A) for step in steps])))
    return counts


@pytest.mark.parametrize(
    ("negatives", "workers"),
    [
        ({"kind": "shared", "count": 500, "sampling": "uniform"}, 1),
        ({"kind": "shared", "count": 500, "sampling": "popularity", "power": 1.0}, 3),
        ({"kind": "per_example", "count": 2, "sampling": "uniform"}, 3),
        ({"kind": "per_example", "count": 2, "sampling": "popularity", "power": 0.5}, 1),
        ({"kind": "in_batch", "count": 500}, 3),
        ({"kind": "mixed", "count": 500, "sampling": "uniform"}, 1),
        ({"kind": "all", "count": 500}, 3),
    ],
)
def test_expected_rows_equal_those_of_real_batches(
    tmp_path: Path, zipf: Path, negatives: dict[str, Any], workers: int
) -> None:
    cluster = {"servers": workers - 1, "workers": workers}
    job = zipf_job(tmp_path, zipf, negatives=negatives, cluster=cluster)
    traffic = plan_of(job).traffic
    assert traffic is not None
    assert not traffic.bound
    actual = count_touched_rows(job, zipf)
    assert sum(traffic.rows) == pytest.approx(sum(actual), rel=0.02)
    assert traffic.rows == pytest.approx(actual, rel=0.05)


@pytest.fixture(scope="module", params=["random", "grouped"])
def prepared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Prepare events of frequent and rare customers in an order."""
    folder = tmp_path_factory.mktemp(request.param)
    draw = np.random.default_rng(4)
    customer = np.minimum(draw.zipf(1.3, 40_000) - 1, 2_000)
    events = write_parquet(folder / "events.parquet", customer=customer, track=draw.integers(0, 300, 40_000))
    prepare_files(folder / "data", events, item="track", hold_out_valid="none", order=request.param)
    return folder / "data"


@pytest.mark.parametrize(("group", "workers"), [(1, 3), (8, 1), ("all", 3)])
def test_expected_rows_of_grouped_steps_equal_those_of_real_batches(
    tmp_path: Path, prepared: Path, group: int | str, workers: int
) -> None:
    cluster = {"servers": workers - 1, "workers": workers}
    job = zipf_job(tmp_path, prepared, negatives={"kind": "all"}, cluster=cluster)
    job = job.model_copy(update={"data": job.data.model_copy(update={"group": group})})
    traffic = plan_of(job).traffic
    assert traffic is not None
    actual = count_touched_rows(job, prepared)
    assert sum(traffic.rows) == pytest.approx(sum(actual), rel=0.03)


def test_vocabulary_without_counts_gives_upper_bound(tmp_path: Path, zipf: Path) -> None:
    inputs = read_inputs(zipf_job(tmp_path, zipf))
    job = inputs.job
    parts = worker_loads(job, inputs.folder, inputs.manifest, inputs.selection.groups)
    empty = {table.name: CountHistogram.of([np.zeros(table.rows, np.int64)]) for table in inputs.model.tables}
    total = inputs.manifest.splits["train"].rows
    traffic = expect_traffic(job, inputs.manifest, inputs.model, parts, empty, total)
    assert traffic.bound
    [rows] = traffic.rows
    assert rows == pytest.approx(2 * total / -(-total // 1000) + 64)
    assert rows >= max(count_touched_rows(job, zipf))


def assert_as_planned(job: Path, cwd: Path, *shape: object) -> None:
    plan = json.loads(succeeded(crossfade_here("plan", job, "--json", *shape, cwd=cwd)).stdout)
    succeeded(crossfade_here("train", job, "--run-dir", "run", *shape, cwd=cwd))
    report = json.loads((cwd / "run" / "report.json").read_text())
    steps, traffic = report["steps"], plan["traffic"]
    assert traffic["rows"] == pytest.approx(report["rows_pulled"] / steps, rel=0.03)
    assert traffic["bytes_pulled"] == pytest.approx(report["bytes_pulled"] / steps, rel=0.03)
    assert traffic["bytes_pushed"] == pytest.approx(report["bytes_pushed"] / steps, rel=0.03)
    assert traffic["dense_equivalent_bytes_pushed"] == report["dense_equivalent_bytes_pushed"] // steps
    assert traffic["examples"] == pytest.approx(report["examples"] / steps)


@pytest.mark.slow
def test_traffic_in_process_equals_the_plan(planted: Path, tmp_path: Path) -> None:
    assert_as_planned(planted, tmp_path)


@pytest.mark.cluster
def test_traffic_on_servers_equals_the_plan(planted: Path, tmp_path: Path) -> None:
    assert_as_planned(planted, tmp_path, "--servers", 1, "--workers", 2)


@pytest.mark.cluster
def test_traffic_of_workers_that_hold_the_tables_equals_the_plan(planted: Path, tmp_path: Path) -> None:
    assert_as_planned(planted, tmp_path, "--servers", 0, "--workers", 2)


def test_wire_bytes_are_those_of_the_busiest_card(tmp_path: Path, zipf: Path) -> None:
    traffic = plan_of(zipf_job(tmp_path, zipf, cluster={"servers": 2, "workers": 2})).traffic
    assert traffic is not None
    servers, workers = ([Role(kind, index) for index in range(2)] for kind in ("server", "worker"))  # type: ignore[arg-type]
    row = 2 * (8 + 4 + traffic.dim * 4) + 8
    assert busiest_bytes(traffic, [[*servers, *workers]]) == 0
    separate_bytes = busiest_bytes(traffic, [servers, workers])
    assert separate_bytes == pytest.approx(sum(traffic.rows) * row)
    four = busiest_bytes(traffic, [[role] for role in (*servers, *workers)])
    assert four == pytest.approx(max(*traffic.rows, sum(traffic.rows) / 2) * row)
    paired = busiest_bytes(traffic, [list(pair) for pair in zip(servers, workers, strict=True)])
    assert paired == pytest.approx(max(traffic.rows) / 2 * row)


def test_wire_bytes_between_workers_that_hold_the_tables(tmp_path: Path, zipf: Path) -> None:
    traffic = plan_of(zipf_job(tmp_path, zipf, cluster={"workers": 4})).traffic
    assert traffic is not None
    workers, row = [Role("worker", index) for index in range(4)], 2 * traffic.dim * 4 + 4
    assert busiest_bytes(traffic, [workers]) == 0
    # A card moves more in the direction in which it has most: what its worker asks for, or what the others do.
    asked, served = max(traffic.rows) * 3 / 4, (sum(traffic.rows) - min(traffic.rows)) / 4
    assert busiest_bytes(traffic, [[role] for role in workers]) == pytest.approx(max(asked, served) * row)
    pairs = [workers[::2], workers[1::2]]
    pair_rows = max(traffic.rows[0] + traffic.rows[2], traffic.rows[1] + traffic.rows[3])
    assert busiest_bytes(traffic, pairs) == pytest.approx(pair_rows / 2 * row)
    rounded = plan_of(zipf_job(tmp_path, zipf, cluster={"workers": 4, "wire_dtype": "bfloat16"})).traffic
    assert rounded is not None
    assert busiest_bytes(rounded, pairs) == pytest.approx(pair_rows / 2 * (2 * traffic.dim * 2 + 4))
    summed = replace(traffic, bytes_all_reduced=3e6)
    # Each sends a third of it to each other worker, of which two are on the other host.
    assert busiest_bytes(summed, pairs) - busiest_bytes(traffic, pairs) == pytest.approx(2 * 2 * 1e6)
