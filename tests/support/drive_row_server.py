"""Run a server without a network, whose table changes while it is saved.

    drive_row_server.py FOLDER

It saves a table, changes rows of it before they are written, and writes what the arrays held at the time of
the save, by name, to FOLDER/expected.npz; the checkpoint is in FOLDER/saved. Then it updates a few rows, and prints as
JSON how many pages of each array that touched.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from snapshots import gated_pieces
from touched_pages import TABLE, make_step, release_pages, touched_pages
from waiting import wait_until

from crossfade.base.arrays import IntArray
from crossfade.kvstore.mxnet.imports import import_mxnet, row_sparse_from, row_sparse_zeros
from crossfade.kvstore.mxnet.row_server import RowServer
from crossfade.kvstore.mxnet.server_protocol import (
    STATUS_LENGTH,
    create_command,
    decode_status,
    encode_command,
    make_layout,
    status_key,
)
from crossfade.kvstore.mxnet.signatures import CommandVerifier
from crossfade.kvstore.optimizer_spec import OptimizerSpec

ROWS_A = np.linspace(0, TABLE.rows - 1, 500).astype(np.int64)


def main(folder: Path) -> None:
    """Save the table while its rows change."""
    mx = import_mxnet()
    server = RowServer(SimpleNamespace(rank=0), CommandVerifier("no command is signed"), str(folder))
    server.command(create_command([TABLE], OptimizerSpec("adam"), 1, servers=1, max_key_bytes=2**30, checkpoint=None))
    status = mx.nd.zeros(STATUS_LENGTH)
    server.update(status_key(0, servers=1), mx.nd.zeros(STATUS_LENGTH), status)
    [layout] = make_layout([TABLE], servers=1)
    [key], shape = layout.key_numbers, layout.key_shape
    weight = row_sparse_zeros(shape, stored=True)
    server.update(key, row_sparse_zeros(shape, stored=False), weight)
    gradient = np.ones((len(ROWS_A), TABLE.dim), np.float32)

    def step(rows_A: IntArray = ROWS_A) -> None:
        server.update(key, row_sparse_from(rows_A, gradient, np.arange(len(rows_A)), shape), weight)

    step()
    arrays = server._shards[key].as_table_shard().arrays
    np.savez(folder / "expected.npz", **arrays)
    with gated_pieces() as gate:
        gate.close()
        server.command(encode_command("save", folder=f"{folder}/saved"))
        before = arrays["weights"][ROWS_A].copy()
        step()
        assert (arrays["weights"][ROWS_A] != before).all(axis=1).all()

    def state() -> str:
        server.command(encode_command("status"))
        return str(decode_status(status.asnumpy())["state"])

    wait_until(lambda: state() != "running", "the save to end")
    assert state() == "saved"
    for array in arrays.values():
        release_pages(array)
    step(make_step().rows_A)
    print(json.dumps({name: touched_pages(array) for name, array in arrays.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
