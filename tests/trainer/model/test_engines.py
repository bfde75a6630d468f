"""Engines: losses and gradients against the float64 formulas of ``trainer/model/losses.py``."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_cases import (
    CASES,
    DIM,
    DRAWS,
    ITEM_TABLE,
    QUERY_TABLE,
    SMOOTH,
    TEMPERATURE,
    assert_close,
    cpu_result,
    gradients_by,
    make_case,
    reference,
    reference_loss,
)

from crossfade.kvstore.arrays import FloatArray
from crossfade.trainer.config.model_sections import LossKind, ScoreKind
from crossfade.trainer.model.engines import pools
from crossfade.trainer.model.engines.cpu import CpuEngine
from crossfade.trainer.model.engines.mxnet_device import Queued, in_turns
from crossfade.trainer.model.negatives import IN_BATCH_KINDS

ROOT = Path(__file__).resolve().parents[3]

every_case = pytest.mark.parametrize("name", CASES)


@every_case
def test_losses_and_gradients_match_float64_formulas(name: str) -> None:
    expected = reference(name)
    assert np.abs(expected[1]).max() > 0.01
    assert_close(cpu_result(CASES[name]), expected, 2e-6)


@every_case
def test_tiling_does_not_change_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_TILE_SCORES", 2 * DRAWS)
    monkeypatch.setattr(pools, "_MIN_TILE", 1)
    monkeypatch.setattr(pools, "_CHUNK_EXAMPLES", 4)
    assert_close(cpu_result(CASES[name]), reference(name), 2e-6)


@every_case
def test_engine_repeats_results_after_larger_batch(name: str) -> None:
    case = CASES[name]
    engine = CpuEngine(case.model, case.loss_spec, case.spec)
    small = case.part(slice(0, 2))
    alone = gradients_by(engine, small)
    gradients_by(engine, case)
    assert_close(gradients_by(engine, small), alone, 0.0)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.negatives not in IN_BATCH_KINDS])
def test_example_of_zero_weight_adds_nothing(name: str) -> None:
    case = CASES[name]
    unweighted = replace(case, weight_B=np.where(np.arange(6) == 5, np.float32(0), case.weight_B))
    assert_close(cpu_result(unweighted), cpu_result(case.part(slice(0, 5))), 1e-7)


@every_case
def test_doubled_weights_double_the_gradient(name: str) -> None:
    case = CASES[name]
    doubled = cpu_result(replace(case, weight_B=case.weight_B * 2))
    assert_close(tuple(part / 2 for part in doubled), cpu_result(case), 1e-6)


@every_case
def test_negative_equal_to_positive_has_no_effect(name: str) -> None:
    case = CASES[name]
    part = case.part(slice(0, 2))
    only_own = replace(part, items_B=np.array([4, 4]), negatives_N=np.full_like(part.negatives_N, 4))
    loss, query_gradient, item_gradient = cpu_result(only_own)
    # Only the term of the positive remains of logistic and ccl.
    assert loss == pytest.approx(reference_loss(only_own, QUERY_TABLE, ITEM_TABLE), rel=1e-5, abs=1e-7)
    if case.loss not in {"logistic", "ccl"}:
        assert loss == pytest.approx(0.0, abs=1e-7)
        np.testing.assert_allclose(query_gradient, 0.0, atol=1e-7)
        np.testing.assert_allclose(item_gradient, 0.0, atol=1e-7)


@every_case
def test_gradients_of_two_halves_add_up(name: str) -> None:
    case = CASES[name]
    halves = [cpu_result(case.part(half)) for half in (slice(0, 2), slice(2, 6))]
    assert_close(tuple(first + second for first, second in zip(*halves, strict=True)), cpu_result(case), 1e-6)


@every_case
def test_empty_batch_has_zero_loss_and_empty_gradients(name: str) -> None:
    case = CASES[name]
    empty = replace(case.part(slice(0, 0)), negatives_N=np.empty(0, np.int64))
    block = {"customer": np.empty((0, DIM), np.float32), "track": np.empty((0, DIM), np.float32)}
    loss, gradients = CpuEngine(case.model, case.loss_spec, case.spec).gradients(empty.batch, block)
    assert loss == 0.0
    assert {table: gradient.shape for table, gradient in gradients.items()} == {"customer": (0, DIM), "track": (0, DIM)}


def result_of_one_example(
    loss: LossKind, negatives: str, weight: float, scores: tuple[float, float]
) -> tuple[float, FloatArray]:
    """Return the loss of an item against four copies of a negative, with ``scores``, and the derivatives by both."""
    case = replace(
        make_case(loss, "dot", negatives).part(slice(0, 1)),
        weight_B=np.array([weight], np.float32),
        negatives_N=np.full(DRAWS, 3),
        global_size=1,
    )
    rows_ND = np.outer(np.array(scores) * TEMPERATURE, np.eye(1, DIM)).astype(np.float32)
    block = {"customer": np.eye(1, DIM, dtype=np.float32), "track": rows_ND}
    found, gradients = CpuEngine(case.model, case.loss_spec, case.spec).gradients(case.batch, block)
    assert np.isfinite(gradients["customer"]).all()
    return found, gradients["track"][:, 0] * TEMPERATURE


each_loss = pytest.mark.parametrize("loss", SMOOTH)
each_kind = pytest.mark.parametrize("negatives", ["shared", "per_example"])
each_size = pytest.mark.parametrize("size", [40.0, 300.0, 1e6])


@each_size
@each_kind
@each_loss
def test_large_scores_neither_overflow_nor_vanish(loss: LossKind, negatives: str, size: float) -> None:
    found, slopes = result_of_one_example(loss, negatives, 1.0, (-size, size))
    # The item scores -size and its negatives +size, so the exponentials vanish beside the linear part.
    assert found == pytest.approx(2 * size + (math.log(DRAWS) if loss == "softmax" else 0.0), rel=1e-6)
    np.testing.assert_allclose(slopes, [-1, 1], rtol=1e-6)


@each_size
@each_kind
@each_loss
def test_negative_feedback_far_above_negatives_has_bounded_gradient(
    loss: LossKind, negatives: str, size: float
) -> None:
    found, slopes = result_of_one_example(loss, negatives, -3.0, (size, -size))
    expected = {"bpr": 2 * size, "logistic": size, "softmax": 2 * size - math.log(DRAWS)}
    assert found == pytest.approx(3 * expected[loss], rel=1e-6)
    np.testing.assert_allclose(slopes, [3, 0 if loss == "logistic" else -3], rtol=1e-6)


@each_size
@each_kind
@each_loss
def test_negative_feedback_far_below_negatives_costs_nothing(loss: LossKind, negatives: str, size: float) -> None:
    found, slopes = result_of_one_example(loss, negatives, -3.0, (-size, size))
    assert 0 <= found < 1e-15
    np.testing.assert_allclose(slopes, 0, atol=1e-15)


@pytest.mark.parametrize("score", [2.0, 10.0, 17.0, 25.0])
def test_negative_feedback_softmax_is_accurate_near_probability_one(score: float) -> None:
    found, slopes = result_of_one_example("softmax", "shared", -1.0, (score, 0.0))
    # In float32, 1 - probability would be 0 from a score of 19 on.
    others = DRAWS / (math.exp(score) + DRAWS)
    assert found == pytest.approx(-math.log(others), rel=1e-6)
    np.testing.assert_allclose(slopes, [1 - others, others - 1], rtol=1e-6)


@every_case
def test_nan_in_a_row_propagates_to_loss_and_gradient(name: str) -> None:
    case = CASES[name]
    batch = case.batch
    block = {"customer": QUERY_TABLE[batch.query.rows_A], "track": ITEM_TABLE[batch.item.rows_A]}
    block["customer"][0, 0] = np.nan
    loss, gradients = CpuEngine(case.model, case.loss_spec, case.spec).gradients(batch, block)
    assert math.isnan(loss)
    assert np.isnan(gradients["customer"][0]).all()


@pytest.fixture(scope="module")
def mxnet_results() -> dict[str, Any]:
    """Compute MXNet's results by devices and case in another process: MXNet installs signal handlers and threads."""
    code = "import engine_cases; engine_cases.print_mxnet_results()"
    path = f"import sys; sys.path[:0] = {[str(ROOT / 'tests' / 'support'), str(ROOT)]}; "
    done = subprocess.run([sys.executable, "-c", path + code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "missing" in found:
        pytest.skip(found["missing"])
    return found


@pytest.mark.parametrize("devices", ["one", "three", "gpus", "tiles of two", "tiles of one"])
@every_case
def test_mxnet_autograd_matches_float64_formulas(name: str, devices: str, mxnet_results: dict[str, Any]) -> None:
    loss, *gradients = mxnet_results[devices][name]
    assert_close((loss, *map(np.array, gradients)), reference(name), 1e-5)


def test_mxnet_repeats_results_of_three_contexts_bit_for_bit(mxnet_results: dict[str, Any]) -> None:
    assert mxnet_results["three"] == mxnet_results["three again"]


def test_mxnet_sums_memory_of_gpus_and_refuses_one_that_is_missing(mxnet_results: dict[str, Any]) -> None:
    found = mxnet_results["gpus"]
    assert found["memory"] == [(20 - 2) + (10 - 1), 30]
    assert found["error"] == ("train.device is gpu:1, gpu:2, but the number of GPUs that MXNet finds here is 2")


def test_mxnet_waits_for_a_tile_after_all_devices_have_work() -> None:
    events: list[str] = []

    class Tile:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_to_read(self) -> None:
            events.append(f"wait {self.name}")

    def computation(device: str, tiles: int) -> Queued[str]:
        for number in range(tiles):
            if number:
                yield Tile(f"{device}{number - 1}")
            events.append(f"queue {device}{number}")
        return device

    assert in_turns([computation("a", 2), computation("b", 1), computation("c", 2)]) == ["a", "b", "c"]
    assert events == ["queue a0", "queue b0", "queue c0", "wait a0", "queue a1", "wait c0", "queue c1"]


@pytest.mark.parametrize("score", ["dot", "euclidean", "cosine"])
def test_bpr_with_one_negative_is_softmax_with_one_negative(score: ScoreKind) -> None:
    # Both are log(1 + exp(s' - s)). BPR has a shorter path for one negative. The third example's negative is its item.
    results = []
    for loss in ("bpr", "softmax"):
        case = make_case(loss, score, "per_example")
        case = replace(case, negatives_N=case.negatives_N.reshape(-1, DRAWS)[:, 0])
        results.append(gradients_by(CpuEngine(case.model, case.loss_spec, case.spec), case))
    (bpr_loss, *bpr), (softmax_loss, *softmax) = results
    assert bpr_loss == pytest.approx(softmax_loss, rel=1e-6)
    for bpr_RD, softmax_RD in zip(bpr, softmax, strict=True):
        np.testing.assert_allclose(bpr_RD, softmax_RD, atol=1e-6)
    assert np.abs(bpr[0]).max() > 0.01
