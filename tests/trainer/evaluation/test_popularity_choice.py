"""The popularity term: what is counted, which factor and share are chosen, and when there is none."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from builders import ITEM, QUERY, random_rows
from preparing import prepare_files, write_parquet
from written_runs import ArrayVectors

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.time_range import TimeRange
from crossfade.trainer.embeddings.popularity import PopularityTerm
from crossfade.trainer.evaluation import popularity_choice
from crossfade.trainer.evaluation.held_out import HeldOut
from crossfade.trainer.evaluation.popularity_choice import SHARES, RankingTrials, choose_term, count_latest
from crossfade.trainer.evaluation.sample import query_keys
from crossfade.trainer.model.spec import ModelSpec, Score
from crossfade.trainer.recommend.top_k import unit_rows

QUERIES, ITEMS, DIM, TEMPERATURE, K = 600, 120, 16, 0.2, 10
COUNTS_I = (4000 / (1 + np.arange(ITEMS))).astype(np.int64)
RECENT_I = np.roll(COUNTS_I, 40) // 10
SOURCE = ArrayVectors({QUERY: random_rows(QUERIES, DIM, 1), ITEM: random_rows(ITEMS, DIM, 2)})
MODEL = ModelSpec(
    TableSpec(QUERY, QUERIES, DIM, 0.1), TableSpec(ITEM, ITEMS, DIM, 0.1), Score.of("cosine", TEMPERATURE)
)
LOGITS_QI = unit_rows(SOURCE.vectors(QUERY, np.arange(QUERIES))) @ unit_rows(SOURCE.vectors(ITEM, np.arange(ITEMS))).T
LOGITS_QI = LOGITS_QI / TEMPERATURE


def held_out(factor: float, counts_I: IntArray, vacant: int | None = None, seed: int = 3) -> HeldOut:
    """Draw two items of each query by the softmax of its logits and ``factor`` times the log of counts."""
    draw = np.random.default_rng(seed)
    gumbel_QI = draw.gumbel(size=LOGITS_QI.shape)
    item_QK = np.argsort(-(LOGITS_QI + factor * np.log1p(counts_I) + gumbel_QI), axis=1)[:, :2]
    truth = JaggedArray(np.arange(QUERIES + 1) * 2, np.sort(item_QK, axis=1).ravel())
    nothing = JaggedArray.empty(QUERIES)
    item_I = None if vacant is None else np.delete(np.arange(ITEMS), vacant)
    return HeldOut(np.arange(QUERIES), truth, nothing, item_I=item_I)


def choose(queries: HeldOut, counts: dict[float, IntArray], factor: float | None = None) -> PopularityTerm | None:
    return choose_term(RankingTrials(SOURCE, MODEL, queries, f"ndcg@{K}", np.asarray), counts, TEMPERATURE, factor)


@pytest.mark.parametrize(("factor", "low", "high"), [(1.0, 0.5, 2.0), (-0.25, -0.6, -0.08)])
def test_factor_is_about_the_one_that_items_were_played_by(factor: float, low: float, high: float) -> None:
    term = choose(held_out(factor, COUNTS_I), {1.0: COUNTS_I})
    assert term is not None
    assert low <= term.card.factor <= high
    assert term.card.share == 1
    np.testing.assert_allclose(term.offset_I, TEMPERATURE * term.card.factor * np.log1p(COUNTS_I), rtol=1e-6)
    score = term.added_to(MODEL.score, TEMPERATURE)
    np.testing.assert_allclose(score.offset_I, term.card.factor * np.log1p(COUNTS_I), rtol=1e-5)


def test_there_is_none_where_its_gain_may_be_chance() -> None:
    terms = [choose(held_out(0.0, COUNTS_I, seed=seed), {1.0: COUNTS_I}) for seed in range(6)]
    assert sum(term is None for term in terms) >= 5
    some = held_out(1.0, COUNTS_I)
    assert choose(some.take(np.arange(5)), {1.0: COUNTS_I}) is None
    fixed = choose(held_out(0.0, COUNTS_I), {1.0: COUNTS_I}, factor=0.5)
    assert fixed is not None
    assert fixed.card.factor == 0.5


def test_candidates_are_compared_on_a_sample_that_is_the_same_for_any_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(popularity_choice, "_SEARCHED", QUERIES // 3)
    queries, row_Q = held_out(1.0, COUNTS_I), np.arange(QUERIES)

    def measure(kept_Q: BoolArray, *, sampled: bool = True) -> FloatArray:
        def all_reduce(values_N: FloatArray) -> FloatArray:  # the number of queries of all workers, or own sums
            return np.full(1, float(QUERIES)) if len(values_N) == 1 else values_N

        trials = RankingTrials(SOURCE, MODEL, queries.take(np.flatnonzero(kept_Q)), f"ndcg@{K}", all_reduce)
        return trials.measure(sampled=sampled)

    alone_G = measure(row_Q >= 0)
    np.testing.assert_allclose(measure(row_Q % 2 == 0) + measure(row_Q % 2 == 1), alone_G)
    assert alone_G.sum() == pytest.approx(measure(row_Q >= 0, sampled=False).sum() / 3, rel=0.2)


def test_sample_is_smaller_where_the_queries_are_a_sample_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(popularity_choice, "_SEARCHED", 50)
    queries = held_out(1.0, COUNTS_I)
    evaluated = queries.take(np.flatnonzero(query_keys(queries.queries_Q[:, np.newaxis]) < 2**62))
    trials = RankingTrials(SOURCE, MODEL, evaluated, f"ndcg@{K}", np.asarray)
    all_sum, found = trials.measure().sum(), trials.measure(sampled=True).sum()
    assert found == pytest.approx(all_sum * 50 / len(evaluated.queries_Q), rel=0.4)


def test_factor_is_of_a_sample_and_taken_by_all_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    by_all = choose(held_out(1.0, COUNTS_I), {1.0: COUNTS_I})
    monkeypatch.setattr(popularity_choice, "_SEARCHED", 20)
    by_few = choose(held_out(1.0, COUNTS_I), {1.0: COUNTS_I})
    assert by_all is not None
    assert by_few is not None
    assert by_few.card.factor != by_all.card.factor


def test_share_of_the_latest_is_the_one_that_predicts() -> None:
    counts = {1.0: COUNTS_I, 0.25: RECENT_I, 0.05: np.ones(ITEMS, np.int64)}
    for factor in (None, 0.7):
        term = choose(held_out(0.8, RECENT_I), counts, factor)
        assert term is not None
        assert term.card.share == 0.25


def test_latest_interactions_of_positive_weight_are_counted(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    user_N, item_N, time_N = draw.integers(0, 30, 2000), draw.integers(0, 12, 2000), draw.permutation(2000)
    weight_N = draw.choice([1.0, -1.0], 2000, p=[0.8, 0.2])
    columns = {"user": user_N, "item": item_N, "at": time_N, "weight": weight_N}
    source = write_parquet(tmp_path / "plays.parquet", **{name: list(values) for name, values in columns.items()})
    names = {"query": "customer=user", "item": "item", "timestamp": "at", "weight": "weight"}
    manifest = prepare_files(tmp_path / "data", source, **names, hold_out_valid="none")
    kept_N = weight_N > 0
    for time_range, used_N in ((None, kept_N), (TimeRange.of(None, 1500), kept_N & (time_N < 1500))):
        with closing(LineageReader(Folder(tmp_path / "data"), read_manifest(Folder(tmp_path / "data")))) as lineage:
            counts = count_latest(lineage, time_range)
        order_N = np.argsort(time_N[used_N], kind="stable")
        rows = {item: row for row, item in enumerate(np.unique(item_N).tolist())}
        assert list(counts) == list(SHARES)
        for share, count_I in counts.items():
            latest_N = item_N[used_N][order_N][-round(share * used_N.sum()) :]
            found: FloatArray = np.sort(count_I)
            np.testing.assert_allclose(found, np.sort(np.bincount(latest_N, minlength=len(rows))), atol=2)
    assert counts[1.0].sum() == used_N.sum() < manifest.splits["train"].rows
