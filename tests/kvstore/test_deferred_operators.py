"""MXNet's operators when their functions are generated at the first call."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, folder: Path = ROOT) -> str:
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout


def test_operators_compute_and_differentiate_as_generated_ones() -> None:
    code = """
from crossfade.kvstore.mxnet.imports import import_mxnet
mx = import_mxnet()
x = mx.nd.array([[1.0, 2.0], [3.0, 4.0]])
x.attach_grad()
with mx.autograd.record():
    y = mx.nd.dot(x, x).sum() + mx.nd.broadcast_add(x, x).sum()
y.backward()
print(y.asscalar(), x.grad.asnumpy().tolist(), mx.nd.dot.__name__, mx.np.exp(mx.np.zeros(1)).tolist())
print(any(type(finder).__module__.startswith("crossfade") for finder in sys.meta_path))
"""
    assert run(code).split("\n")[:2] == ["74.0 [[9.0, 13.0], [11.0, 15.0]] dot [1.0]", "False"]
