"""MXNet's engine by itself: tiles of few scores, and GPUs.

What all engines have in common is in ``test_engine_contract.py``.
"""

from collections.abc import Iterator

import pytest
from engine_cases import CASES, assert_close
from engines_under_test import missing, other_process
from loss_formulas import reference
from mxnet_results import GpuResults, Results, results_in_tiles, results_on_gpus

pytestmark = pytest.mark.slow
every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def found() -> Iterator[tuple[Results, Results, GpuResults]]:
    """Return the results in tiles of two examples, in tiles of one, and on a GPU."""
    if reason := missing("mxnet"):
        pytest.skip(reason)
    with other_process() as process:
        twos = process.submit(results_in_tiles, "cpu", _CPU_TILE=1, _MIN_CPU_ROWS=2)
        ones = process.submit(results_in_tiles, "cpu", _MAX_TILE=1)
        yield twos.result(), ones.result(), process.submit(results_on_gpus).result()


@every_case
def test_tiles_do_not_change_results(name: str, found: tuple[Results, Results, GpuResults]) -> None:
    twos, ones, _ = found
    assert_close(twos[name], reference(name), 1e-5)
    assert_close(ones[name], reference(name), 1e-5)


@every_case
def test_gpu_reaches_the_results_of_the_formulas(name: str, found: tuple[Results, Results, GpuResults]) -> None:
    assert_close(found[2].results[name], reference(name), 1e-5)


def test_memory_of_the_gpu_is_reported(found: tuple[Results, Results, GpuResults]) -> None:
    assert found[2].memory == (20 - 2, 20)


def test_missing_gpu_is_refused(found: tuple[Results, Results, GpuResults]) -> None:
    assert found[2].error == "train.device is gpu:2, but the number of GPUs that MXNet finds here is 2"
