"""Where sums over workers are made: on the CPU, or on the GPU of MXNet's engine if Horovod was built with NCCL.

Real sums, of several workers on the CPU, are in ``tests/trainer/training/test_dense_workers.py``.
"""

import os
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crossfade.trainer.model import allreduce
from crossfade.trainer.model.allreduce import HorovodAllReduce, sum_context

MXNET = SimpleNamespace(cpu=lambda: "cpu", gpu=lambda index: f"gpu({index})")


@pytest.mark.parametrize(
    ("device", "nccl", "context"),
    [("cpu", 21210, "cpu"), ("gpu:0", 0, "cpu"), ("gpu:0", 21210, "gpu(0)"), ("gpu:3", 21210, "gpu(3)")],
)
def test_sums_are_made_on_the_gpu_only_with_nccl(device: str, nccl: int, context: str) -> None:
    horovod = SimpleNamespace(nccl_built=lambda: nccl)
    assert sum_context(MXNET, horovod, device) == context


def test_sum_without_nccl_is_made_on_the_cpu_whatever_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("mxnet") is None:
        pytest.skip("MXNet is not installed")
    summed: list[Any] = []
    horovod = ModuleType("horovod.mxnet")

    def add_to_itself(array: Any, op: str, name: str) -> None:
        summed.append((array.context.device_type, op, name))
        array += array

    values = {"init": lambda: None, "Sum": "sum", "nccl_built": lambda: 0, "allreduce_": add_to_itself}
    vars(horovod).update(values)
    monkeypatch.setitem(sys.modules, "horovod", ModuleType("horovod"))
    monkeypatch.setitem(sys.modules, "horovod.mxnet", horovod)
    monkeypatch.setattr(allreduce, "check_horovod_env", lambda: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    total_N = HorovodAllReduce(0, 1, timeout_seconds=1, device="gpu:0").sum(np.array([1, 2.5], np.float32))
    np.testing.assert_array_equal(total_N, np.array([2, 5], np.float32))
    assert summed == [("cpu", "sum", "dense")]
