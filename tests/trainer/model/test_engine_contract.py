"""What every engine does: losses and gradients against formulas in float64, and how they behave at the edges.

Each test runs with the CPU engine, PyTorch, and MXNet.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from engine_cases import (
    CASES,
    DIM,
    DRAWS,
    SMOOTH,
    TEMPERATURE,
    Case,
    Result,
    assert_close,
    by_table,
    gradients_by,
    make_case,
    vectors_of,
)
from engines_under_test import ENGINES, EngineUnderTest, missing, other_process
from loss_formulas import HAS_TORCH, reference, reference_of
from needs import TORCH
from tower_cases import TOWER_CASES, tower_gradients, tower_reference

from crossfade.base.arrays import FloatArray
from crossfade.trainer.config.sections import LossKind

TOLERANCE = 1e-5
MIXED = {(case.loss, case.negatives): name for name, case in CASES.items() if name.endswith("-mixed")}
"""The last of the cases with weights of both signs, by loss and kind of negatives."""
Make = Callable[..., EngineUnderTest]

needs_autograd = pytest.mark.skipif(not HAS_TORCH, reason=TORCH)
every_case = pytest.mark.parametrize("name", CASES)
each_kind_and_loss = pytest.mark.parametrize("name", MIXED.values())


@pytest.fixture(scope="module")
def mxnet_process() -> Iterator[ProcessPoolExecutor]:
    with other_process() as process:
        yield process


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name == "mxnet" else ()) for name in ENGINES],
)
def make(request: pytest.FixtureRequest) -> Make:
    """Return a function that makes the engine of a case from its parts."""
    name: str = request.param
    if reason := missing(name):
        pytest.skip(reason)
    process = request.getfixturevalue("mxnet_process") if name == "mxnet" else None
    return partial(EngineUnderTest, name, process)


def results(engine: EngineUnderTest, *cases: Case) -> list[Result]:
    """Return the results of ``cases``, which one engine computes one after the other."""
    batches = [case.batch for case in cases]
    computed = engine.compute([(batch, vectors_of(batch)) for batch in batches])
    return [by_table(batch, found.loss, found.gradients) for batch, found in zip(batches, computed, strict=True)]


@every_case
def test_losses_and_gradients_match_float64_formulas(make: Make, name: str) -> None:
    case, expected = CASES[name], reference(name)
    assert np.abs(expected[1]).max() > 0.01
    assert_close(gradients_by(make(*case.parts), case), expected, TOLERANCE)


@needs_autograd
@pytest.mark.parametrize("name", TOWER_CASES)
def test_gradients_of_tables_and_layers_match_autograd(make: Make, name: str) -> None:
    case, (loss, expected) = TOWER_CASES[name], tower_reference(name)
    found_loss, found = tower_gradients(make(*case.parts), case)
    assert found_loss == pytest.approx(loss, rel=TOLERANCE, abs=TOLERANCE)
    assert found.keys() == expected.keys()
    assert max(np.abs(gradient).max() for gradient in expected.values()) > 0.01
    for table, gradient in expected.items():
        np.testing.assert_allclose(found[table], gradient, rtol=TOLERANCE, atol=TOLERANCE, err_msg=table)


@each_kind_and_loss
def test_batch_of_two_examples_or_one(make: Make, name: str) -> None:
    pair, single = CASES[name].part(slice(0, 2)), CASES[name].part(slice(4, 5))
    for case, found in zip((pair, single), results(make(*pair.parts), pair, single), strict=True):
        assert_close(found, reference_of(case), TOLERANCE)


@each_kind_and_loss
def test_results_repeat_bit_for_bit_after_a_larger_batch(make: Make, name: str) -> None:
    case = CASES[name]
    small = case.part(slice(0, 2))
    first, complete, second, again = results(make(*case.parts), small, case, small, case)
    assert_close(second, first, 0.0)
    assert_close(again, complete, 0.0)
    [alone] = results(make(*case.parts), small)
    assert_close(alone, first, 0.0)


@each_kind_and_loss
def test_negative_equal_to_positive_has_no_effect(make: Make, name: str) -> None:
    case = CASES[name]
    part = case.part(slice(0, 2))
    only_own = replace(part, items_B=np.array([4, 4]), negatives_N=np.full_like(part.negatives_N, 4))
    found = gradients_by(make(*case.parts), only_own)
    assert_close(found, reference_of(only_own), TOLERANCE)
    # Only the term of the positive remains of logistic.
    if case.loss != "logistic":
        assert_close(found, (0.0, *map(np.zeros_like, found[1:])), 1e-7)


@pytest.mark.parametrize("name", [name for (loss, _), name in MIXED.items() if loss in {"softmax", "warp"}])
def test_empty_batch_has_zero_loss_and_empty_gradients(make: Make, name: str) -> None:
    case = CASES[name]
    empty = replace(case.part(slice(0, 0)), negatives_N=np.empty(0, np.int64)).batch
    loss, gradients = make(*case.parts).gradients(empty, vectors_of(empty))
    assert loss == 0.0
    assert {name: (rows.shape, rows.dtype) for name, rows in gradients.items()} == {
        "customer": ((0, DIM), np.float32),
        "track": ((0, DIM), np.float32),
    }


@each_kind_and_loss
def test_gradients_are_memory_that_can_be_reused(make: Make, name: str) -> None:
    case = CASES[name]
    batch = case.batch
    vectors = vectors_of(batch)
    [computed] = make(*case.parts).compute([(batch, vectors)])
    assert {name: (rows.shape, rows.dtype) for name, rows in computed.gradients.items()} == {
        name: (rows.shape, np.float32) for name, rows in vectors.items()
    }
    assert (computed.unusable, computed.changed) == ([], [])


@each_kind_and_loss
def test_nan_in_a_row_propagates_to_loss_and_gradient(make: Make, name: str) -> None:
    case = CASES[name]
    batch = case.batch
    vectors = vectors_of(batch)
    vectors["customer"][0, 0] = np.nan
    loss, gradients = make(*case.parts).gradients(batch, vectors)
    assert math.isnan(loss)
    assert np.isnan(gradients["customer"][0]).all()


def result_of_one_example(
    make: Make, loss: LossKind, negatives: str, weight: float, scores: tuple[float, float]
) -> tuple[float, FloatArray]:
    """Return the loss of an item against four copies of a negative, with ``scores``, and the derivatives by both."""
    case = replace(
        make_case(loss, "dot", negatives).part(slice(0, 1)),
        weight_B=np.array([weight], np.float32),
        negatives_N=np.full(DRAWS, 3),
        global_size=1,
    )
    rows_ND = np.outer(np.array(scores) * TEMPERATURE, np.eye(1, DIM)).astype(np.float32)
    vectors = {"customer": np.eye(1, DIM, dtype=np.float32), "track": rows_ND}
    found, gradients = make(*case.parts).gradients(case.batch, vectors)
    assert np.isfinite(gradients["customer"]).all()
    return found, gradients["track"][:, 0] * TEMPERATURE


SIZES = (40.0, 300.0, 1e6)
each_loss_and_size = pytest.mark.parametrize(
    ("loss", "negatives", "size"),
    [
        (loss, negatives, SIZES[(number + shift) % 3])
        for number, loss in enumerate(SMOOTH)
        for shift, negatives in enumerate(("shared", "per_example"))
    ],
)


@each_loss_and_size
def test_large_scores_neither_overflow_nor_vanish(make: Make, loss: LossKind, negatives: str, size: float) -> None:
    found, slopes = result_of_one_example(make, loss, negatives, 1.0, (-size, size))
    # The item scores -size and its negatives +size, so the exponentials vanish beside the linear part.
    assert found == pytest.approx(2 * size + (math.log(DRAWS) if loss == "softmax" else 0.0), rel=1e-6)
    np.testing.assert_allclose(slopes, [-1, 1], rtol=1e-6)


@each_loss_and_size
def test_negative_feedback_far_above_negatives_has_bounded_gradient(
    make: Make, loss: LossKind, negatives: str, size: float
) -> None:
    found, slopes = result_of_one_example(make, loss, negatives, -3.0, (size, -size))
    expected = {"bpr": 2 * size, "logistic": size, "softmax": 2 * size - math.log(DRAWS)}
    assert found == pytest.approx(3 * expected[loss], rel=1e-6)
    np.testing.assert_allclose(slopes, [3, 0 if loss == "logistic" else -3], rtol=1e-6)


@each_loss_and_size
def test_negative_feedback_far_below_negatives_costs_nothing(
    make: Make, loss: LossKind, negatives: str, size: float
) -> None:
    found, slopes = result_of_one_example(make, loss, negatives, -3.0, (-size, size))
    assert 0 <= found < 1e-15
    np.testing.assert_allclose(slopes, 0, atol=1e-15)


@pytest.mark.parametrize("score", [2.0, 10.0, 17.0, 25.0])
def test_negative_feedback_softmax_is_accurate_near_probability_one(make: Make, score: float) -> None:
    found, slopes = result_of_one_example(make, "softmax", "shared", -1.0, (score, 0.0))
    # In float32, 1 - probability would be 0 from a score of 19 on.
    others = DRAWS / (math.exp(score) + DRAWS)
    assert found == pytest.approx(-math.log(others), rel=1e-6)
    np.testing.assert_allclose(slopes, [1 - others, others - 1], rtol=1e-6)
