"""Messages between workers and servers: JSON commands, and the status that each server publishes.

Commands, which travel signed (``authentication.py``), by ``"command"``:

- ``create``: the tables, the optimizer, the seed, the number of servers, the size of keys, a checkpoint or null, and
  the steps taken before
- ``load``: copy rows from that checkpoint
- ``reset``: initialize ``rows`` of ``table``, and zero their optimizer state
- ``assign``: copy the next push of each key of ``table`` into its rows, instead of updating them with it
- ``lr_factor``: multiply the learning rate by ``factor``, above 0 and at most 1, from now on
- ``save``: start writing a checkpoint into ``folder``, which must be below the job's folder of checkpoints
- ``status``: publish the state of the last save in the server's row of the status key

A status is ``{"state": "idle" | "running" | "saved" | "failed"}``, with a ``message`` where it failed, and with the
fields of ``PartResult`` and ``pause_seconds`` where it was saved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec

COMMAND_HEAD = 0
"""MXNet passes only this head to a controller; it drops commands with others silently."""
RESET_ROWS = 1 << 13
"""Rows in one reset command, which then takes about 100 kB."""
STATUS_LENGTH = 4096
"""float32 values per server in the status key: the length of a text, then its bytes, one in each value."""

LOAD_COMMAND = json.dumps({"command": "load"})
STATUS_COMMAND = json.dumps({"command": "status"})


def create_command(
    tables: Sequence[TableSpec],
    optimizer: OptimizerSpec,
    seed: int,
    servers: int,
    max_key_bytes: int,
    checkpoint: str | None,
    first_step: int = 0,
) -> str:
    """Return the command with the layout of tables, the source of their rows, and the steps taken before."""
    return json.dumps(
        {
            "command": "create",
            "tables": [asdict(table) for table in tables],
            "optimizer": asdict(optimizer),
            "seed": seed,
            "servers": servers,
            "max_key_bytes": max_key_bytes,
            "checkpoint": checkpoint,
            "first_step": first_step,
        }
    )


def reset_commands(table: str, rows_R: IntArray) -> Iterator[str]:
    """Yield the commands that reset ``rows_R`` of ``table``, at most ``RESET_ROWS`` in each."""
    for start in range(0, len(rows_R), RESET_ROWS):
        rows = rows_R[start : start + RESET_ROWS].tolist()
        yield json.dumps({"command": "reset", "table": table, "rows": rows})


def assign_command(table: str) -> str:
    """Return the command that makes the next push of each key of ``table`` replace rows."""
    return json.dumps({"command": "assign", "table": table})


def lr_factor_command(factor: float) -> str:
    """Return the command that multiplies the learning rate by ``factor``."""
    return json.dumps({"command": "lr_factor", "factor": factor})


def save_command(folder: str) -> str:
    """Return the command that starts a save into the checkpoint folder ``folder``, a path or URI."""
    return json.dumps({"command": "save", "folder": folder})


def is_below(folder: str, parent: str) -> bool:
    """Return whether ``folder``, a path or URI, is below the folder ``parent``."""
    inner, outer = Folder(folder), Folder(parent)
    if inner.path is not None and outer.path is not None:
        return Path(outer.path).resolve() in Path(inner.path).resolve().parents
    # Keys of S3 are no paths, but tools that copy them to a file system would follow '..'.
    return inner.uri.startswith(f"{outer.uri.rstrip('/')}/") and ".." not in inner.uri.split("/")


def decode_status(row_N: FloatArray) -> dict[str, Any]:
    """Decode a server's status from its row of the status key, float32 (STATUS_LENGTH,)."""
    text = row_N[1 : 1 + int(row_N[0])].astype(np.uint8).tobytes()
    status: dict[str, Any] = json.loads(text)
    return status


def encode_status(status: dict[str, Any], row_N: FloatArray) -> None:
    """Write ``status`` into a server's row of the status key, in place."""
    text = json.dumps(status).encode("ascii")
    assert len(text) < STATUS_LENGTH
    row_N[0] = len(text)
    row_N[1 : 1 + len(text)] = np.frombuffer(text, dtype=np.uint8)
