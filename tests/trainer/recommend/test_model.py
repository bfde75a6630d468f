"""The model that answers: opened once, with an older checkpoint in place of one that turns out to be corrupt."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import ITEM, QUERY, make_interactions, write_data_set
from written_runs import CUSTOMER_IDS, TRACK_NAMES, TRAINED, save_checkpoint, write_dataset, write_run

from crossfade.base.errors import OptionError
from crossfade.trainer.recommend.model import Model, UnknownRowError, open_model
from crossfade.trainer.recommend.options import RecommendOptions, SimilarOptions
from crossfade.trainer.recommend.queries import all_queries, find_queries
from crossfade.trainer.runs.options import ModelSource

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("keep", [True, False])
def test_checkpoint_that_turns_out_to_be_corrupt_gives_way_to_an_older_one(tmp_path: Path, keep: bool) -> None:
    run, lines = write_run(tmp_path, embeddings=False), list[str]()
    expected = save_checkpoint(run, 7)
    save_checkpoint(run, 9)
    checkpoints = run.path / "checkpoints"
    with closing(open_model(ModelSource.of(source=checkpoints), lines.append, keep=keep)) as opened:
        assert opened.use(lambda model: model.trained.step) == 9
        [file] = (checkpoints / "step-000000009" / ITEM).glob("weights.*")
        file.write_bytes(file.read_bytes()[:-1] + b"\xff")
        found = opened.use(lambda model: model.vectors(ITEM, np.array([2, 0])))
        np.testing.assert_array_equal(found, expected[ITEM][[2, 0]])
        assert opened.use(lambda model: model.trained.step) == 7
    assert f"skipped a checkpoint: {file}" in lines[0]


@pytest.mark.parametrize(
    ("options", "popular", "new"),
    [
        ({"k": 4}, [4, 1, 2, 7], [4, 1, 7, 8]),
        ({"k": 9, "where": "count < 5"}, [8, 0, 6, 9], [8, 0, 6, 9]),
        ({"k": 2, "exclude": ()}, [4, 1], [4, 1]),
        ({"k": 2, "deny": ["1028", "1007"]}, [2, 7], [7, 8]),
        ({"k": 3, "allow": ["1014", "1049", "1063", "1035"]}, [2, 7, 9], [7, 9]),
        ({"k": 9, "max_per": ("count", 1)}, [4, 1, 8, 0, 6], [4, 1, 8, 0, 6]),
        ({"k": 4, "popularity_damping": 9, "diversity": 1}, [4, 1, 2, 7], [4, 1, 7, 8]),
    ],
)
def test_queries_without_a_vector_get_popular_items(
    tmp_path: Path, options: Mapping[str, Any], popular: list[int], new: list[int]
) -> None:
    """Row -1 has no history; customer 2, which has no vector, has track 2 in its history."""
    customer_R = np.ones(len(CUSTOMER_IDS), np.int64)
    customer_R[2] = 0
    write_dataset(tmp_path / "data", counts={ITEM: np.array([2, 5, 5, 0, 9, 0, 1, 5, 3, 1]), QUERY: customer_R})
    ranking, rows_Q = RecommendOptions.of(**options), np.array([-1, 4, 2, -1])

    def check(model: Model) -> None:
        assert all_queries(model, "popular").rows_Q.tolist() == list(range(11))
        assert 2 not in all_queries(model, "error").rows_Q
        found, known = model.recommend(rows_Q, ranking), model.recommend(rows_Q[1:2], ranking)
        for rows_K, scores_K, expected in zip(*found, [popular, known.rows_QK[0], new, popular], strict=True):
            assert [row for row in rows_K if row >= 0] == [row for row in expected if row >= 0]
            assert np.isfinite(scores_K).tolist() == (rows_K >= 0).tolist()
        assert found.scores_QK[0, 0] == model.trained.counts(ITEM)[popular[0]]
        np.testing.assert_array_equal(found.scores_QK[1], known.scores_QK[0])

    source = ModelSource.of(source=write_run(tmp_path).path)
    for keep in (True, False):
        with closing(open_model(source, print, keep=keep)) as opened:
            opened.use(check)


def test_unknown_ids_are_integers_as_the_others_unless_one_is_none(tmp_path: Path) -> None:
    train = {"train": [[make_interactions([0], [0])]]}
    write_data_set(tmp_path / "data", train, queries=len(CUSTOMER_IDS), items=len(TRACK_NAMES))
    with closing(open_model(ModelSource.of(source=write_run(tmp_path).path), print)) as opened:
        for texts, expected in (
            (["77", "3", "77", "78"], [77, 3, 78]),
            (["007", "7"], ["007", "7"]),
            (["x", "3"], ["x", "3"]),
        ):
            assert opened.use(lambda m, t=texts: find_queries(m, t, "popular", print).ids(m).to_pylist()) == expected


@pytest.mark.parametrize("keep", [True, False])
def test_rows_are_found_and_ranked_in_the_order_that_is_asked_for(tmp_path: Path, keep: bool) -> None:
    source = ModelSource.of(source=write_run(tmp_path, dim=3).path)

    def check(model: Model) -> None:
        rows_Q = model.find(QUERY, [CUSTOMER_IDS[5], CUSTOMER_IDS[0], CUSTOMER_IDS[5]])
        assert rows_Q.tolist() == [5, 0, 5]
        found, everyone = (
            model.recommend(rows_Q, RecommendOptions()),
            model.recommend(np.arange(11), RecommendOptions()),
        )
        np.testing.assert_array_equal(found.rows_QK, everyone.rows_QK[rows_Q])
        assert set(found.rows_QK.ravel()) - {-1} <= set(TRAINED)
        assert model.find_each(ITEM, ["x", "1035"])[0].error == (
            "there is no track with the ID or name 'x'; expected a name or an ID, such as Ágætis byrjun, 1007, "
            'Blue "in" Green'
        )
        for use, kind, message in (
            (lambda: model.find(ITEM, ["1035"]), UnknownRowError, "track '1035' has no interaction of positive weight"),
            (lambda: model.entity("song"), UnknownRowError, "there is no entity 'song'; expected customer or track"),
            (lambda: model.similar(rows_Q, SimilarOptions(allow=("x",))), UnknownRowError, "allow: none of its 1 IDs"),
            (
                lambda: model.recommend_to_histories(model.histories(rows_Q), RecommendOptions.of(context={"h": 1})),
                OptionError,
                "context h=1: is added to trained vectors",
            ),
            (
                lambda: model.recommend_to_histories(model.histories(rows_Q), RecommendOptions(on_unknown="popular")),
                OptionError,
                "on_unknown popular: is for customers by ID, and a history has none",
            ),
        ):
            with pytest.raises(kind, match=message):
                use()

    with closing(open_model(source, print, keep=keep)) as opened:
        opened.use(check)
