"""What a worker does and takes for done, where anything else would go wrong only now and then."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.errors import CheckpointError
from kvstore.mxnet.client import MXNetStore
from kvstore.mxnet.commands import STATUS_LENGTH, encode_status


def test_a_save_is_commanded_when_the_pushes_of_its_step_have_been_answered() -> None:
    done: list[str] = []

    def command(_head: int, body: str) -> None:
        done.append(json.loads(body)["command"])

    store = object.__new__(MXNetStore)
    store.rank = 0
    store._mx = SimpleNamespace(nd=SimpleNamespace(waitall=lambda: done.append("answered")))
    store._store = SimpleNamespace(_send_command_to_servers=command)
    store.save("folder/step-000000001")
    assert done == ["answered", "save"]


SAVED = {"part": {"name": "part", "bytes": 1, "crc32": 2}, "pause_seconds": 0.1, "seconds": 1.0, "bytes": 10}
RUNNING, DONE, FAILED = {"state": "running"}, {"state": "saved", **SAVED}, {"state": "failed", "message": "disk full"}


def told_by(*statuses: dict[str, Any]) -> MXNetStore:
    """The store of a worker whose servers tell ``statuses`` of their save."""
    told = np.zeros((len(statuses), STATUS_LENGTH), np.float32)
    for status, row_N in zip(statuses, told, strict=True):
        encode_status(status, row_N)
    store = object.__new__(MXNetStore)
    store.rank, store._servers = 0, len(statuses)
    store._mx = SimpleNamespace(nd=SimpleNamespace(zeros=lambda _shape: SimpleNamespace(asnumpy=lambda: told)))
    store._store = SimpleNamespace(_send_command_to_servers=lambda *_: None, pull=lambda *_, **__: None)
    return store


@pytest.mark.parametrize("statuses", [(RUNNING, RUNNING), (DONE, RUNNING), (RUNNING, DONE), (FAILED, RUNNING)])
def test_a_save_goes_on_until_no_server_writes_any_more(statuses: tuple[dict[str, Any], ...]) -> None:
    assert told_by(*statuses).poll_save() is None


def test_a_save_is_done_when_all_servers_have_their_part_and_fails_with_any() -> None:
    saved = told_by(DONE, DONE).poll_save()
    assert saved is not None
    assert (len(saved.parts), saved.bytes) == (2, 20)
    with pytest.raises(CheckpointError, match="server-1: disk full"):
        told_by(DONE, FAILED).poll_save()
