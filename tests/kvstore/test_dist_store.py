"""The row store's contract on real servers: what workers pull equals what a store in process holds, bit for bit."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import drive_afresh
import numpy as np
import pytest
from dist_roles import running_roles
from drive_store import (
    EMPTY_STEP,
    HALF_EMPTY_STEP,
    SEED,
    STEPS,
    SUMS,
    TABLES,
    addends,
    gradient,
    optimizer,
    rate_factor,
)
from saved_ranges import cut, random_table, save, save_store

from kvstore.arrays import FloatArray
from kvstore.checkpoint.format import TableShard
from kvstore.checkpoint.reader import open_checkpoint
from kvstore.layout import make_layout
from kvstore.local import LocalStore
from kvstore.optimizers import OptimizerKind, make_optimizer
from kvstore.store import RowGradient, TableSpec

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Layout:
    """Who holds the tables, in keys of what size, and who updates them, by which rule."""

    servers: int
    workers: int
    key_bytes: int
    kind: OptimizerKind

    def __str__(self) -> str:
        return f"{self.servers} servers, {self.workers} workers, {self.kind}"


@dataclass(frozen=True)
class FinishedJob:
    """What one job of ``drive_store.py`` left."""

    layout: Layout
    saved: list[dict[str, np.ndarray]]
    exit_codes: dict[str, int]
    left_running: list[str]


LAYOUTS = [Layout(1, 1, 4096, "adam"), Layout(2, 2, 2048, "adagrad"), Layout(3, 2, 1024, "rowwise_adagrad")]


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FinishedJob:
    layout: Layout = request.param
    folder = tmp_path_factory.mktemp("store")
    with running_roles(
        "drive_store.py",
        layout.kind,
        layout.key_bytes,
        folder,
        servers=layout.servers,
        workers=layout.workers,
        folder=folder,
    ) as roles:
        codes = roles.exit_codes()
        assert set(codes.values()) == {0}, roles.logs()
        left = [str(process) for process in roles.running_processes()]
    saved = [dict(np.load(folder / f"rank-{rank}.npz")) for rank in range(layout.workers)]
    return FinishedJob(layout, saved, codes, left)


def summed(step: int, workers: int, table: TableSpec) -> RowGradient:
    """The gradients of all workers, added up in the order of ranks, on the rows that any of them pushed."""
    total_ND = np.zeros((table.rows, table.dim), np.float32)
    touched_N = np.zeros(table.rows, bool)
    for rank in range(workers):
        pushed = gradient(step, rank, table)
        total_ND[pushed.rows_A] += pushed.values_AD
        touched_N[pushed.rows_A] = True
    rows_A = np.flatnonzero(touched_N)
    return RowGradient(rows_A, total_ND[rows_A])


def reference(layout: Layout) -> list[dict[str, FloatArray]]:
    """All tables before the first step and after each, as a store in process has them."""
    store = LocalStore()
    store.create(TABLES, optimizer(layout.kind), SEED)
    everything = {table.name: np.arange(table.rows, dtype=np.int64) for table in TABLES}
    history = [store.pull(everything)]
    for step in range(STEPS):
        store.set_lr_factor(rate_factor(step))
        store.push({table.name: summed(step, layout.workers, table) for table in TABLES})
        history.append(store.pull(everything))
    return history


def same_bits(one: FloatArray, other: FloatArray) -> bool:
    """Whether two arrays hold the same floats, signs of zero included."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def test_the_layouts_cut_tables_into_several_keys() -> None:
    for layout in LAYOUTS:
        assert make_layout(TABLES, layout.servers, layout.key_bytes)[0].keys > 4


def test_every_worker_pulls_after_every_step_what_a_store_in_process_holds(job: FinishedJob) -> None:
    names = ["start", *map(str, range(STEPS))]
    for name, tables in zip(names, reference(job.layout), strict=True):
        for table in TABLES:
            for rank, saved in enumerate(job.saved):
                pulled = saved[f"{table.name}/{name}"]
                assert same_bits(pulled, tables[table.name]), f"{table.name} after step {name}, worker {rank}"


def test_a_step_without_rows_changes_nothing(job: FinishedJob) -> None:
    for table in TABLES:
        before, after = (job.saved[0][f"{table.name}/{step}"] for step in (EMPTY_STEP - 1, EMPTY_STEP))
        assert same_bits(before, after)


def test_a_worker_without_rows_leaves_the_others_their_step(job: FinishedJob) -> None:
    for table in TABLES:
        before, after = (job.saved[0][f"{table.name}/{step}"] for step in (HALF_EMPTY_STEP - 1, HALF_EMPTY_STEP))
        changed_N = np.flatnonzero((before != after).any(axis=1))
        pushed_N = summed(HALF_EMPTY_STEP, job.layout.workers, table).rows_A
        assert changed_N.tolist() == pushed_N.tolist()
        assert (len(changed_N) > 0) == (job.layout.workers > 1)


def test_sums_over_workers_are_exact_float64_however_often(job: FinishedJob) -> None:
    for rank, saved in enumerate(job.saved):
        assert saved["sums"].shape == (SUMS, len(addends(0, 0)))
        for step, total_N in enumerate(saved["sums"]):
            expected_N = addends(step, 0)
            for other in range(1, job.layout.workers):
                expected_N = expected_N + addends(step, other)
            assert same_bits(total_N, expected_N), f"sum {step}, worker {rank}"


def test_rows_outside_a_table_are_refused_where_they_are_asked_for(job: FinishedJob) -> None:
    for saved in job.saved:
        assert len(saved["refusals"]) == 4
        for message in saved["refusals"]:
            assert "table 'track'" in message
            assert "it has rows 0 to 36" in message


def test_a_refused_request_changes_nothing(job: FinishedJob) -> None:
    for saved in job.saved:
        for table in TABLES:
            assert same_bits(saved[f"{table.name}/end"], saved[f"{table.name}/{STEPS - 1}"])


def test_all_roles_end_well_and_leave_nothing_running(job: FinishedJob) -> None:
    assert set(job.exit_codes.values()) == {0}
    assert len(job.exit_codes) == 1 + job.layout.servers + job.layout.workers
    assert job.left_running == []


def test_servers_start_the_rows_afresh_that_a_store_in_process_starts_afresh(tmp_path: Path) -> None:
    tables, kind = drive_afresh.TABLES, drive_afresh.OPTIMIZER
    parts = [cut(table, random_table(table, kind), 1)[0] for table in tables]
    old = save(str(tmp_path / "old"), 1, tables, kind, [parts])
    with closing(LocalStore()) as store:
        store.create(tables, kind, drive_afresh.SEED, old, drive_afresh.AFRESH)
        expected = save_store(store, str(tmp_path / "here"), 1, tables, kind)
    to = tmp_path / "servers"
    with running_roles("drive_afresh.py", 1 << 16, old, to, servers=2, workers=2, folder=tmp_path) as roles:
        assert set(roles.exit_codes().values()) == {0}, roles.logs()
    [found] = to.iterdir()
    for table in tables:
        one, other = (whole_table(table, checkpoint) for checkpoint in (expected, str(found)))
        for name, values in one.items():
            assert same_bits(values, other[name]), f"{name} of {table.name}"
            assert not same_bits(values, random_table(table, kind)[name])


def whole_table(table: TableSpec, checkpoint: str) -> dict[str, FloatArray]:
    """Weights and optimizer state of a table in a checkpoint."""
    state = make_optimizer(drive_afresh.OPTIMIZER, table.rows, table.dim).state
    arrays = {"weights": np.empty((table.rows, table.dim), np.float32), **state}
    open_checkpoint(checkpoint).load([TableShard(table.name, table.rows, 0, 1, arrays)])
    return arrays
