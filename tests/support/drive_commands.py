"""Run every role of the job of ``test_foreign_commands.py``, whose worker also sends what others could send.

drive_commands.py FOLDER
"""

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
from dist_roles import SECRET, play_role

from crossfade.kvstore.mxnet.client import MXNetStore
from crossfade.kvstore.mxnet.server_protocol import COMMAND_HEAD, encode_command
from crossfade.kvstore.mxnet.signatures import CommandSigner
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import RowGradient, TableSpec

TABLE = TableSpec("track", rows=20, dim=4, init_std=0.1)
OPTIMIZER = OptimizerSpec("adagrad", learning_rate=0.3)
SEED = 5
FACTORS = (0.5, 0.25, 1.0)
ROWS_A = np.arange(0, TABLE.rows, 2, dtype=np.int64)


def gradient(step: int) -> RowGradient:
    """Return what the worker pushes in a step."""
    values = np.random.default_rng(step).normal(size=(len(ROWS_A), TABLE.dim))
    return RowGradient(ROWS_A, values.astype(np.float32))


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


def work(store: MXNetStore) -> None:
    """Train some steps, while foreign and replayed commands arrive before and after each."""
    folder, sent = Path(sys.argv[1]), []

    def send(body: str) -> None:
        store._store._send_command_to_servers(COMMAND_HEAD, body)

    sign = store._signer.sign

    def record(text: str) -> str:
        sent.append(sign(text))
        return sent[-1]

    store._signer.sign = record  # type: ignore[method-assign]
    ignored = foreign_commands(folder)
    for body in ignored:
        send(body)
    store.create([TABLE], OPTIMIZER, SEED)
    for step, factor in enumerate(FACTORS):
        store.set_lr_factor(factor)
        for body in [*foreign_commands(folder), *sent]:
            send(body)
            ignored.append(body)
        store.push({TABLE.name: gradient(step)})
    pulled = store.pull({TABLE.name: np.arange(TABLE.rows, dtype=np.int64)})[TABLE.name]
    np.save(folder / "pulled.npy", pulled)
    (folder / "ignored.json").write_text(json.dumps(ignored))


if __name__ == "__main__":
    play_role(work, key_bytes=1 << 20)
