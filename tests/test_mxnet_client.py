"""In which order a worker of a distributed job does things where another order would go wrong only now and then."""

import json
from types import SimpleNamespace

from kvstore.mxnet_client import MXNetStore


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
