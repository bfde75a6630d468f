"""The row store on real servers: what workers pull equals what a local store holds, bit for bit."""

import pickle
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import drive_reset
import drive_store
import numpy as np
import pytest
from dist_roles import SECRET, running_roles
from drive_store import (
    ALL_REDUCES,
    SEED,
    STEPS,
    TABLES,
    addends,
    gradient,
    lr_factor,
    optimizer,
)
from saved_shards import load_table, random_table, save_shards, save_store, split_table

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerKind
from crossfade.kvstore.store import RowGradient, TableSpec

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Layout:
    """The size of a job and of its keys, and its optimizer."""

    servers: int
    workers: int
    max_key_bytes: int
    kind: OptimizerKind

    def __str__(self) -> str:
        return f"{self.servers} servers, {self.workers} workers, {self.kind}"


@dataclass(frozen=True)
class FinishedJob:
    """The results of one job of ``drive_store.py``."""

    layout: Layout
    folder: Path
    saved: list[dict[str, np.ndarray]]
    server_log: str
    exit_codes: dict[str, int]
    remaining_processes: list[str]


LAYOUTS = [Layout(1, 1, 4096, "adam"), Layout(3, 2, 1024, "rowwise_adagrad")]


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FinishedJob:
    layout: Layout = request.param
    folder = tmp_path_factory.mktemp("store")
    with running_roles(
        "drive_store.py",
        layout.kind,
        layout.max_key_bytes,
        folder,
        servers=layout.servers,
        workers=layout.workers,
        folder=folder,
    ) as roles:
        codes = roles.exit_codes()
        assert set(codes.values()) == {0}, roles.logs()
        remaining = [str(process) for process in roles.mark.processes()]
        log = next(role for role in roles.all if role.name == "server-0").log.read_text()
    saved = [dict(np.load(folder / f"rank-{rank}.npz")) for rank in range(layout.workers)]
    return FinishedJob(layout, folder, saved, log, codes, remaining)


def summed(step: int, workers: int, table: TableSpec) -> RowGradient:
    """Return the sum of all workers' gradients, in the order of ranks, on the rows that any of them pushed."""
    total_ND = np.zeros((table.rows, table.dim), np.float32)
    touched_N = np.zeros(table.rows, bool)
    for rank in range(workers):
        pushed = gradient(step, rank, table)
        total_ND[pushed.rows_A] += pushed.values_AD
        touched_N[pushed.rows_A] = True
    rows_A = np.flatnonzero(touched_N)
    return RowGradient(rows_A, total_ND[rows_A])


def reference(layout: Layout) -> list[dict[str, FloatArray]]:
    """Return all tables before the first step and after each, from a local store."""
    store = LocalStore()
    store.create(TABLES, optimizer(layout.kind), SEED)
    all_rows = {table.name: np.arange(table.rows, dtype=np.int64) for table in TABLES}
    history = [store.pull(all_rows)]
    for step in range(STEPS):
        store.set_lr_factor(lr_factor(step))
        store.push({table.name: summed(step, layout.workers, table) for table in TABLES})
        history.append(store.pull(all_rows))
    return history


def same_bits(one: FloatArray, other: FloatArray) -> bool:
    """Return whether two arrays hold the same floats, signs of zero included."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def test_workers_pull_what_a_local_store_holds_after_every_step(job: FinishedJob) -> None:
    names = ["start", *map(str, range(STEPS))]
    for name, tables in zip(names, reference(job.layout), strict=True):
        for table in TABLES:
            for rank, saved in enumerate(job.saved):
                pulled = saved[f"{table.name}/{name}"]
                assert same_bits(pulled, tables[table.name]), f"{table.name} after step {name}, worker {rank}"


def test_foreign_tampered_and_replayed_commands_are_ignored(job: FinishedJob) -> None:
    """What workers pull, as above, shows that they have changed nothing."""
    assert not (job.folder / "stolen").exists()
    unpickled = job.folder / "unpickled"
    assert not unpickled.exists()
    pickle.loads(drive_store.pickled(unpickled).encode("ascii"))
    assert unpickled.exists()  # loading it does create the file
    ignored = "ignored a command that no worker of this job has sent"
    assert f"{ignored}: its message authentication code was not made" in job.server_log
    assert f"{ignored}: it repeats a command that was executed" in job.server_log
    assert SECRET not in job.server_log


def test_repeated_all_reduce_is_exact_in_float64(job: FinishedJob) -> None:
    for rank, saved in enumerate(job.saved):
        assert saved["sums"].shape == (ALL_REDUCES, len(addends(0, 0)))
        for step, total_N in enumerate(saved["sums"]):
            expected_N = addends(step, 0)
            for other in range(1, job.layout.workers):
                expected_N = expected_N + addends(step, other)
            assert same_bits(total_N, expected_N), f"sum {step}, worker {rank}"


def test_rows_outside_a_table_are_rejected_in_the_worker_and_change_nothing(job: FinishedJob) -> None:
    for saved in job.saved:
        assert len(saved["rejections"]) == 4
        for message in saved["rejections"]:
            assert "table 'track'" in message
            assert "it has rows 0 to 36" in message
        for table in TABLES:
            assert same_bits(saved[f"{table.name}/end"], saved[f"{table.name}/{STEPS - 1}"])


def test_servers_reset_and_assign_the_same_rows_as_a_local_store(tmp_path: Path) -> None:
    tables, optimizer = drive_reset.TABLES, drive_reset.OPTIMIZER
    parts = [split_table(table, random_table(table, optimizer), 1)[0] for table in tables]
    old = save_shards(str(tmp_path / "old"), 1, tables, optimizer, [parts])
    with closing(LocalStore()) as store:
        store.create(tables, optimizer, drive_reset.SEED, old, drive_reset.RESETS)
        drive_reset.assign_and_step(store)
        expected = save_store(store, str(tmp_path / "here"), 1, tables, optimizer)
    output = tmp_path / "servers"
    with running_roles("drive_reset.py", 1 << 16, old, output, servers=2, workers=2, folder=tmp_path) as roles:
        assert set(roles.exit_codes().values()) == {0}, roles.logs()
    [found] = output.iterdir()
    for table in tables:
        one, other = (load_table(checkpoint, table, optimizer) for checkpoint in (expected, str(found)))
        for name, values in one.items():
            assert same_bits(values, other[name]), f"{name} of {table.name}"
            assert not same_bits(values, random_table(table, optimizer)[name])
