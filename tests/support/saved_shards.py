"""Split random tables into shards, as servers hold them, and write checkpoints of them."""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from waiting import wait_until

from crossfade.kvstore.checkpoint.checkpoint import open_checkpoint
from crossfade.kvstore.checkpoint.format import HEADER_BYTES, CheckpointManifest, TableShard
from crossfade.kvstore.checkpoint.lifecycle import commit, step_folder
from crossfade.kvstore.checkpoint.snapshot import PartResult, Snapshot
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.optimizers import make_optimizer
from crossfade.kvstore.store import FileDigest, RowStore, SaveResult, TableSpec

SEAL = ',\n "crc32": '
"""What precedes the CRC-32 of a manifest."""
PADDING = 77
"""The value of padding in shards that ``split_table`` returns."""

Arrays = dict[str, NDArray[Any]]
Result = TypeVar("Result")


def random_table(table: TableSpec, optimizer: OptimizerSpec, seed: int = 1) -> Arrays:
    """Return random weights and optimizer state of a table."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.integers(1, 2**30, values.shape).astype(values.dtype)
        if values.dtype.kind == "i"
        else generator.standard_normal(values.shape).astype(values.dtype)
        for name, values in empty_table(table, optimizer).items()
    }


def empty_table(table: TableSpec, optimizer: OptimizerSpec) -> Arrays:
    """Return uninitialized weights and zero optimizer state of a table."""
    state = make_optimizer(optimizer, table.rows, table.dim).state
    return {"weights": np.empty((table.rows, table.dim), np.float32), **state}


def split_table(table: TableSpec, arrays: Mapping[str, NDArray[Any]], num_shards: int) -> list[TableShard]:
    """Split a table into ``num_shards`` shards of equal size, padded with ``PADDING``."""
    shard_rows = -(-table.rows // num_shards)
    shards = []
    for number in range(num_shards):
        padded: Arrays = {}
        for name, values in arrays.items():
            padded[name] = np.full((shard_rows, *values.shape[1:]), PADDING, values.dtype)
            rows = values[number::num_shards]
            padded[name][: len(rows)] = rows
        shards.append(TableShard(table.name, table.rows, number, num_shards, padded))
    return shards


def blank_shards(table: TableSpec, optimizer: OptimizerSpec, num_shards: int) -> list[TableShard]:
    """Return a table in shards with all values 55."""
    arrays = {name: np.full_like(values, 55) for name, values in random_table(table, optimizer).items()}
    return split_table(table, arrays, num_shards)


def join_shards(shards: Sequence[TableShard]) -> Arrays:
    """Return the table that ``shards`` hold: the inverse of ``split_table``."""
    arrays: Arrays = {}
    for name, values in shards[0].arrays.items():
        arrays[name] = np.empty((shards[0].table_rows, *values.shape[1:]), values.dtype)
        for shard in shards:
            rows = arrays[name][shard.number :: shard.num_shards]
            rows[:] = shard.arrays[name][: len(rows)]
    return arrays


def load_table(checkpoint: str, table: TableSpec, optimizer: OptimizerSpec) -> Arrays:
    """Return weights and optimizer state of a table in a checkpoint."""
    arrays = empty_table(table, optimizer)
    open_checkpoint(checkpoint).load([TableShard(table.name, table.rows, 0, 1, arrays)])
    return arrays


def wait_for_snapshot(snapshot: Snapshot) -> PartResult:
    """Wait for the result of a snapshot."""
    return _wait_for_result(snapshot.poll)


def wait_for_save(store: RowStore) -> SaveResult:
    """Wait for the result of a store's last save."""
    return _wait_for_result(store.poll_save)


def _wait_for_result(poll: Callable[[], Result | None]) -> Result:
    results: list[Result] = []

    def has_result() -> bool:
        result = poll()
        if result is not None:
            results.append(result)
        return bool(results)

    wait_until(has_result, "a part of a checkpoint")
    return results[0]


def save_shards(
    checkpoints: str,
    step: int,
    tables: Sequence[TableSpec],
    optimizer: OptimizerSpec,
    parts: Sequence[Sequence[TableShard]],
    training: dict[str, Any] | None = None,
) -> str:
    """Write a checkpoint, each of ``parts`` by a snapshot of its own; return its URI."""
    folder = step_folder(checkpoints, step)
    snapshots = [Snapshot(folder, part, len(parts), shards) for part, shards in enumerate(parts)]
    results = [wait_for_snapshot(snapshot).part for snapshot in snapshots]
    commit(checkpoints, make_manifest(step, tables, optimizer, results, training))
    return folder


def rewrite_file(checkpoint: Path, path: str, data: bytes) -> None:
    """Replace a file of a checkpoint, and the checksums that lead to it: what a writer without checks may leave."""
    (checkpoint / path).write_bytes(data)
    manifest = json.loads((checkpoint / "manifest.json").read_bytes())
    for listed in manifest["parts"]:
        part = json.loads((checkpoint / listed["name"]).read_bytes())
        for file in part["files"]:
            if file["path"] == path:
                file |= {"bytes": len(data), "crc32": zlib.crc32(data)}
        text = json.dumps(part).encode()
        (checkpoint / listed["name"]).write_bytes(text)
        listed |= {"bytes": len(text), "crc32": zlib.crc32(text)}
    reseal(checkpoint / "manifest.json", lambda _: json.dumps({**manifest, "crc32": 0}, indent=1).split(SEAL)[0])


def poison(checkpoint: Path, path: str, entry: int, value: float = np.nan) -> None:
    """Overwrite the last value of an entry of an array file, and the checksums that lead to it."""
    values = np.load(checkpoint / path)
    values[entry, -1] = value
    header = (checkpoint / path).read_bytes()[:HEADER_BYTES]
    rewrite_file(checkpoint, path, header + values.tobytes())


def reseal(path: Path, change: Callable[[str], str]) -> None:
    """Change a manifest and make its CRC-32 match."""
    body = change(path.read_text().rpartition(SEAL)[0])
    path.write_text(f"{body}{SEAL}{zlib.crc32(body.encode())}\n}}\n")


def save_store(
    store: RowStore, checkpoints: str, step: int, tables: Sequence[TableSpec], optimizer: OptimizerSpec
) -> str:
    """Write a checkpoint of a store; return its URI."""
    folder = step_folder(checkpoints, step)
    store.save(folder)
    commit(checkpoints, make_manifest(step, tables, optimizer, wait_for_save(store).parts))
    return folder


def make_manifest(
    step: int,
    tables: Sequence[TableSpec],
    optimizer: OptimizerSpec,
    parts: Sequence[FileDigest],
    training: dict[str, Any] | None = None,
) -> CheckpointManifest:
    """Return the manifest of a checkpoint with seed 1."""
    return CheckpointManifest(
        step=step,
        tables=[asdict(table) for table in tables],
        optimizer=asdict(optimizer),
        seed=1,
        parts=[asdict(part) for part in parts],
        training=training or {},
    )
