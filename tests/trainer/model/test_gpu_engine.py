"""PyTorch's engine on a GPU: results by the formulas, the same bits again, and memory that does not grow."""

from dataclasses import replace

import numpy as np
import pytest
from engine_cases import CASES, DRAWS, ITEMS, QUERIES, Case, gradients_by, make_case
from loss_formulas import reference

from crossfade.trainer.model.engines.torch import TorchEngine

pytestmark = pytest.mark.gpu

EXAMPLES = 4_096
KINDS = ("shared", "per_example", "in_batch", "all")


def engine_of(case: Case, device: str) -> TorchEngine:
    return TorchEngine(*case.parts, device)


def large_case(kind: str) -> Case:
    """Return a case in which thousands of examples have the same few rows, in one partition."""
    draws = np.random.default_rng(3)
    negatives = {"shared": DRAWS, "per_example": DRAWS * EXAMPLES}.get(kind, 0)
    return replace(
        make_case("softmax", "cosine", kind),
        queries_B=draws.integers(0, QUERIES, EXAMPLES),
        items_B=draws.integers(0, ITEMS, EXAMPLES),
        weight_B=draws.random(EXAMPLES, np.float32),
        negatives_N=np.arange(ITEMS) if kind == "all" else draws.integers(0, ITEMS, negatives),
        global_size=EXAMPLES,
        partition_sizes=(EXAMPLES,) if kind == "in_batch" else (),
    )


def test_losses_and_gradients_match_float64_formulas(gpu_device: str) -> None:
    found = {}
    for name, case in CASES.items():
        parts = zip(gradients_by(engine_of(case, gpu_device), case), reference(name), strict=True)
        found[name] = max(float(np.abs(part - expected).max()) for part, expected in parts)
    assert {name: difference for name, difference in found.items() if not difference <= 1e-5} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_results_repeat_bit_for_bit(gpu_device: str, kind: str) -> None:
    case = large_case(kind)
    first, *others = (gradients_by(engine_of(case, gpu_device), case) for _ in range(3))
    assert np.abs(first[2]).max() > 0
    for other in others:
        assert first[0] == other[0]
        assert [part.tobytes() for part in first[1:]] == [part.tobytes() for part in other[1:]]
