"""TODO-DOC split from kvstore/mxnet/server.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from kvstore.arrays import FloatArray, IntArray
from kvstore.optimizers import OptimizerSpec
from kvstore.store import TableSpec

COMMAND_HEAD = 0
"""The only head that MXNet hands to a controller; it drops the others silently."""


AFRESH_ROWS = 1 << 13
"""Rows in one command that starts rows afresh: about 100 kB of it."""


STATUS_LENGTH = 4096
"""What one server tells is so many float32: the length of a text, then its bytes, one in each."""


def create_command(
    tables: Sequence[TableSpec],
    optimizer: OptimizerSpec,
    seed: int,
    servers: int,
    key_bytes: int,
    checkpoint: str | None,
) -> str:
    """The command, JSON, that tells each server which tables it will hold a part of, and where rows come from."""
    return json.dumps(
        {
            "command": "create",
            "tables": [asdict(table) for table in tables],
            "optimizer": asdict(optimizer),
            "seed": seed,
            "servers": servers,
            "key_bytes": key_bytes,
            "checkpoint": checkpoint,
        }
    )


def reset_commands(table: str, rows_R: IntArray) -> Iterator[str]:
    """The commands, JSON, that tell each server to start rows of ``table`` afresh, so many of them in each."""
    for start in range(0, len(rows_R), AFRESH_ROWS):
        rows = rows_R[start : start + AFRESH_ROWS].tolist()
        yield json.dumps({"command": "afresh", "table": table, "rows": rows})


def decode_status(row_N: FloatArray) -> dict[str, Any]:
    """What a server has told, from its row of the status key."""
    text = row_N[1 : 1 + int(row_N[0])].astype(np.uint8).tobytes()
    status: dict[str, Any] = json.loads(text)
    return status


def _encode_status(status: dict[str, Any], row_N: FloatArray) -> None:
    text = json.dumps(status).encode("ascii")
    assert len(text) < STATUS_LENGTH
    row_N[0] = len(text)
    row_N[1 : 1 + len(text)] = np.frombuffer(text, dtype=np.uint8)
