"""The worker's side of a save: its order after pushes, and its result from the servers' statuses."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crossfade.base.errors import CheckpointError
from crossfade.kvstore.mxnet.client import MXNetStore
from crossfade.kvstore.mxnet.server_protocol import STATUS_LENGTH, encode_status
from crossfade.kvstore.mxnet.signatures import CommandSigner


def test_save_is_sent_after_pushes_of_the_step_are_acknowledged() -> None:
    calls: list[str] = []

    def command(_head: int, body: str) -> None:
        calls.append(json.loads(body.split(maxsplit=2)[2])["command"])

    store = object.__new__(MXNetStore)
    store.rank, store._signer = 0, CommandSigner("the-secret-of-a-test")
    store._mx = SimpleNamespace(nd=SimpleNamespace(waitall=lambda: calls.append("waited")))
    store._store = SimpleNamespace(_send_command_to_servers=command)
    store.save("folder/step-000000001")
    assert calls == ["waited", "save"]


SAVED = {"part": {"name": "part", "bytes": 1, "crc32": 2}, "pause_seconds": 0.1, "seconds": 1.0, "bytes": 10}
RUNNING, DONE, FAILED = {"state": "running"}, {"state": "saved", **SAVED}, {"state": "failed", "message": "disk full"}


def store_with_statuses(*statuses: dict[str, Any]) -> MXNetStore:
    """Return the store of a worker whose servers publish ``statuses``."""
    rows = np.zeros((len(statuses), STATUS_LENGTH), np.float32)
    for status, row_N in zip(statuses, rows, strict=True):
        encode_status(status, row_N)
    store = object.__new__(MXNetStore)
    store.rank, store._servers, store._signer = 0, len(statuses), CommandSigner("the-secret-of-a-test")
    published = iter(rows)

    def pull(_key: int, out: SimpleNamespace) -> None:
        row_N = next(published)
        out.asnumpy = lambda: row_N

    store._mx = SimpleNamespace(nd=SimpleNamespace(zeros=lambda _length: SimpleNamespace()))
    store._store = SimpleNamespace(_send_command_to_servers=lambda *_: None, pull=pull)
    return store


@pytest.mark.parametrize("statuses", [(RUNNING, RUNNING), (DONE, RUNNING), (RUNNING, DONE), (FAILED, RUNNING)])
def test_save_is_in_progress_while_any_server_is_writing(statuses: tuple[dict[str, Any], ...]) -> None:
    assert store_with_statuses(*statuses).poll_save() is None


def test_save_succeeds_with_all_servers_and_fails_with_any() -> None:
    saved = store_with_statuses(DONE, DONE).poll_save()
    assert saved is not None
    assert (len(saved.parts), saved.bytes) == (2, 20)
    with pytest.raises(CheckpointError, match="server-1: disk full"):
        store_with_statuses(DONE, FAILED).poll_save()
