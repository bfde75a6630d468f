"""Engines by themselves: tiles of few scores, and paths for special cases.

What all engines have in common is in ``test_engine_contract.py``.
"""

from dataclasses import replace

import numpy as np
import pytest
from engine_cases import CASES, DRAWS, assert_close, cpu_result, gradients_by, make_case
from engines_under_test import missing, other_process, results_in_tiles
from loss_formulas import reference
from needs import TORCH

from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.model.engines import cpu, torch
from crossfade.trainer.model.engines.cpu import CpuEngine, WorkSharing

every_case = pytest.mark.parametrize("name", CASES)


@every_case
def test_tiling_does_not_change_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_TILE_SCORES", 2 * DRAWS)
    monkeypatch.setattr(cpu, "_MIN_TILE", 1)
    monkeypatch.setattr(cpu, "_CHUNK_EXAMPLES", 4)
    assert_close(cpu_result(CASES[name]), reference(name), 2e-6)


@every_case
def test_pytorch_computes_few_scores_at_a_time_to_the_same_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason=TORCH)
    from crossfade.trainer.model.engines.torch import TorchEngine

    monkeypatch.setattr(torch, "_MAX_SCORES", 2 * DRAWS)
    case = CASES[name]
    found = gradients_by(TorchEngine(*case.parts), case)
    assert_close(found, reference(name), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{"_CPU_TILE": 1, "_MIN_CPU_ROWS": 2}, {"_MAX_TILE": 1}], ids=["twos", "ones"])
def test_tiles_of_mxnet_do_not_change_results(limits: dict[str, int]) -> None:
    if reason := missing("mxnet"):
        pytest.skip(reason)
    with other_process() as process:
        found = process.submit(results_in_tiles, **limits).result()
    for name, result in found.items():
        assert_close(result, reference(name), 1e-5)


def test_error_of_a_part_that_threads_share_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "get_num_threads", lambda: 2)

    def work(part: int) -> None:
        if part == 6:
            raise ValueError(f"part {part}")

    with pytest.raises(ValueError, match="part 6"):
        WorkSharing().run(work, range(7))


@pytest.mark.parametrize("score", ["dot", "euclidean", "cosine"])
def test_bpr_with_one_negative_is_softmax_with_one_negative(score: ScoreKind) -> None:
    # Both are log(1 + exp(s' - s)). BPR has a shorter path for one negative. The third example's negative is its item.
    results = []
    for loss in ("bpr", "softmax"):
        case = make_case(loss, score, "per_example")
        case = replace(case, negatives_N=case.negatives_N.reshape(-1, DRAWS)[:, 0])
        results.append(gradients_by(CpuEngine(*case.parts), case))
    (bpr_loss, *bpr), (softmax_loss, *softmax) = results
    assert bpr_loss == pytest.approx(softmax_loss, rel=1e-6)
    for bpr_RD, softmax_RD in zip(bpr, softmax, strict=True):
        np.testing.assert_allclose(bpr_RD, softmax_RD, atol=1e-6)
    assert np.abs(bpr[0]).max() > 0.01
