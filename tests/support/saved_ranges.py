"""Tables in ranges, as servers hold them, and checkpoints of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from waiting import wait_until

from kvstore.checkpoint.format import CheckpointManifest, TableShard
from kvstore.checkpoint.lifecycle import commit, step_folder
from kvstore.checkpoint.snapshot import PartResult, Snapshot
from kvstore.optimizers import OptimizerSpec, make_optimizer
from kvstore.store import FileDigest, RowStore, SaveResult, TableSpec

WRITE_SECONDS = 60.0

Arrays = dict[str, NDArray[Any]]
Result = TypeVar("Result")


def random_table(table: TableSpec, optimizer: OptimizerSpec, seed: int = 1) -> Arrays:
    """Weights and optimizer state of a whole table, each value its own."""
    generator = np.random.default_rng(seed)
    state = make_optimizer(optimizer, table.rows, table.dim).state
    like = {"weights": np.empty((table.rows, table.dim), np.float32), **state}
    return {
        name: generator.integers(1, 2**30, values.shape).astype(values.dtype)
        if values.dtype.kind == "i"
        else generator.standard_normal(values.shape).astype(values.dtype)
        for name, values in like.items()
    }


def cut(table: TableSpec, arrays: Mapping[str, NDArray[Any]], ranges: int) -> list[TableShard]:
    """A table dealt to ``ranges`` ranges of equal size, with odd values for padding."""
    chunk = -(-table.rows // ranges)
    held = []
    for number in range(ranges):
        padded: Arrays = {}
        for name, values in arrays.items():
            padded[name] = np.full((chunk, *values.shape[1:]), 77, values.dtype)
            rows = values[number::ranges]
            padded[name][: len(rows)] = rows
        held.append(TableShard(table.name, table.rows, number, ranges, padded))
    return held


def joined(ranges: Sequence[TableShard]) -> Arrays:
    """The whole table that is held in ``ranges``: the reverse of ``cut``."""
    whole: Arrays = {}
    for name, values in ranges[0].arrays.items():
        whole[name] = np.empty((ranges[0].table_rows, *values.shape[1:]), values.dtype)
        for held in ranges:
            rows = whole[name][held.number :: held.num_shards]
            rows[:] = held.arrays[name][: len(rows)]
    return whole


def written(snapshot: Snapshot) -> PartResult:
    """What a snapshot wrote, once it has."""
    return _result(snapshot.poll)


def saved(store: RowStore) -> SaveResult:
    """What the last save of a store wrote, once it has."""
    return _result(store.poll_save)


def _result(poll: Callable[[], Result | None]) -> Result:
    results: list[Result] = []

    def done() -> bool:
        result = poll()
        if result is not None:
            results.append(result)
        return bool(results)

    wait_until(done, WRITE_SECONDS, "a part of a checkpoint")
    return results[0]


def save(
    checkpoints: str,
    step: int,
    tables: Sequence[TableSpec],
    optimizer: OptimizerSpec,
    parts: Sequence[Sequence[TableShard]],
    training: dict[str, Any] | None = None,
) -> str:
    """Write a checkpoint, each of ``parts`` by a snapshot of its own; its URI."""
    to = step_folder(checkpoints, step)
    snapshots = [Snapshot(to, part, len(parts), ranges) for part, ranges in enumerate(parts)]
    results = [written(snapshot).part for snapshot in snapshots]
    commit(checkpoints, manifest(step, tables, optimizer, results, training))
    return to


def save_store(
    store: RowStore, checkpoints: str, step: int, tables: Sequence[TableSpec], optimizer: OptimizerSpec
) -> str:
    """Write a checkpoint of a store; its URI."""
    to = step_folder(checkpoints, step)
    store.save(to)
    commit(checkpoints, manifest(step, tables, optimizer, saved(store).parts))
    return to


def manifest(
    step: int,
    tables: Sequence[TableSpec],
    optimizer: OptimizerSpec,
    parts: Sequence[FileDigest],
    training: dict[str, Any] | None = None,
) -> CheckpointManifest:
    """The manifest of a checkpoint."""
    return CheckpointManifest(
        step=step,
        tables=[asdict(table) for table in tables],
        optimizer=asdict(optimizer),
        seed=1,
        parts=[asdict(part) for part in parts],
        training=training or {},
    )
