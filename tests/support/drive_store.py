"""Run every role of the jobs of ``test_dist_store.py``: workers push random gradients, and store what they pull.

Meanwhile the servers receive commands that others than the workers could send.

drive_store.py KIND MAX_KEY_BYTES FOLDER
"""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
from dist_roles import SECRET, play_role

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import StoreError
from crossfade.kvstore.mxnet.client import MXNetStore
from crossfade.kvstore.mxnet.server_protocol import COMMAND_HEAD, encode_command
from crossfade.kvstore.mxnet.signatures import CommandSigner
from crossfade.kvstore.optimizer_spec import OptimizerKind, OptimizerSpec
from crossfade.kvstore.store import MAX_ALL_REDUCE_LENGTH, RowGradient, TableSpec

TABLES = [TableSpec("customer", rows=700, dim=8, init_std=0.1), TableSpec("track", rows=37, dim=3, init_std=0.5)]
SEED = 11
STEPS = 8
ALL_REDUCES = 1500
EMPTY_STEP, HALF_EMPTY_STEP = 3, 5


def optimizer(kind: OptimizerKind) -> OptimizerSpec:
    """Return the optimizer of all jobs, of the given kind."""
    return OptimizerSpec(kind, learning_rate=0.3, weight_decay=0.01, max_norm=0.8)


def lr_factor(step: int) -> float:
    """Return the LR factor of a step: it changes twice during the run."""
    return (1.0, 0.25, 0.5)[step * 3 // STEPS]


def gradient(step: int, rank: int, table: TableSpec) -> RowGradient:
    """Return what worker ``rank`` pushes: half of the table's rows, so two workers share many of them; or no rows."""
    random = np.random.default_rng((step, rank, table.rows))
    count = table.rows // 2
    if step == EMPTY_STEP or (step == HALF_EMPTY_STEP and rank == 0):
        count = 0
    rows_A = np.sort(random.choice(table.rows, count, replace=False)).astype(np.int64)
    return RowGradient(rows_A, random.normal(size=(count, table.dim)).astype(np.float32))


def addends(step: int, rank: int) -> FloatArray:
    """Return the values of worker ``rank`` in all-reduce ``step``: neither one float32 nor two can hold them."""
    index_N = np.arange(MAX_ALL_REDUCE_LENGTH, dtype=np.float64) + step
    values_N = np.where(index_N % 2 == 0, 1e15 + index_N, -index_N / 3) * (1 + rank)
    values_N[0] = step
    return values_N


def all_rows(store: MXNetStore) -> dict[str, FloatArray]:
    """Pull every row of every table."""
    return store.pull({table.name: np.arange(table.rows, dtype=np.int64) for table in TABLES})


def rejection(store: MXNetStore, rows: list[int], *, push: bool) -> str:
    """Return the store's error for a request for ``rows`` of the second table."""
    rows_A = np.array(rows, dtype=np.int64)
    name, dim = TABLES[1].name, TABLES[1].dim
    try:
        if push:
            store.push({name: RowGradient(rows_A, np.ones((len(rows), dim), np.float32))})
        else:
            store.pull({name: rows_A})
    except StoreError as error:
        return str(error)
    return ""


class CreatesFile:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mknod, (str(self._path),)


def pickled(path: Path) -> str:
    """Return a pickle that creates the file ``path`` when it is loaded, as MXNet's own server loads commands."""
    return pickle.dumps(CreatesFile(path), protocol=0).decode("ascii")


def foreign_commands(folder: Path) -> list[str]:
    """Return commands that no worker has signed: the first ones to arrive."""
    signed = CommandSigner(SECRET).sign(encode_command("lr_factor", factor=1.0))
    return [
        pickled(folder / "unpickled"),
        *("GET / HTTP/1.1", "{}", '{"command": "stop"}', '{"command": "rate", "factor": 0}'),
        encode_command("lr_factor", factor=1e-9),
        encode_command("save", folder=str(folder / "stolen")),
        encode_command("load"),
        CommandSigner("another-secret-of-roles").sign(encode_command("lr_factor", factor=1e-9)),
        signed.replace("1.0", "0.1"),
        signed.replace(" 1 ", " 2 ", 1),
    ]


def record_commands(store: MXNetStore) -> list[str]:
    """Return a list to which the signed commands of a worker are added, for others to replay."""
    sent, sign = [], store._signer.sign

    def record(text: str) -> str:
        sent.append(sign(text))
        return sent[-1]

    store._signer.sign = record  # type: ignore[method-assign]
    return sent


def send_foreign(store: MXNetStore, folder: Path, sent: list[str]) -> None:
    """Send the servers commands that no worker has signed, and those that were executed."""
    if store.rank == 0:
        for body in [*foreign_commands(folder), *sent]:
            store._store._send_command_to_servers(COMMAND_HEAD, body)


def work(store: MXNetStore) -> None:
    """Do everything that the tests check, in one job."""
    folder, sent = Path(sys.argv[3]), record_commands(store)
    send_foreign(store, folder, sent)
    store.create(TABLES, optimizer(sys.argv[1]), SEED)  # type: ignore[arg-type]
    pulled = {f"{name}/start": block_AD for name, block_AD in all_rows(store).items()}
    for step in range(STEPS):
        store.set_lr_factor(lr_factor(step))
        send_foreign(store, folder, sent)
        store.push({table.name: gradient(step, store.rank, table) for table in TABLES})
        for name, block_AD in all_rows(store).items():
            pulled[f"{name}/{step}"] = block_AD
    rejections = [
        rejection(store, rows, push=push) for rows in ([0, TABLES[1].rows], [-1, 3]) for push in (False, True)
    ]
    sums = [store.all_reduce(addends(step, store.rank)) for step in range(ALL_REDUCES)]
    pulled |= {f"{name}/end": block_AD for name, block_AD in all_rows(store).items()}
    np.savez(folder / f"rank-{store.rank}.npz", rejections=rejections, sums=sums, **pulled)


if __name__ == "__main__":
    play_role(work, key_bytes=int(sys.argv[2]))
