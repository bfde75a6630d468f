"""Served models: the same results as the commands, exactly and by an index, from copies that need nothing else."""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from cluster_data import CUSTOMERS, GENRES, TRACKS, write_job, write_planted
from command_here import crossfade_here
from running_command import succeeded
from written_runs import ArrayVectors

from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.recommend.candidates import FilterOptions
from crossfade.trainer.recommend.history import Histories, load_histories
from crossfade.trainer.recommend.metadata_table import MetadataFile
from crossfade.trainer.recommend.recommender import ALL_SPLITS, Recommender, RecommendOptions
from crossfade.trainer.recommend.similar import similar_rows
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.serving import served_metadata, served_model
from crossfade.trainer.serving.served_metadata import OverloadedError
from crossfade.trainer.serving.served_model import RankingOptions, ServedModel
from crossfade.trainer.serving.version_folder import CARD_FILE, VersionOptions, write_version

Result = TypeVar("Result")
EVERYONE = np.arange(CUSTOMERS)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on planted data with dot products, whose neighbors differ from those by cosine."""
    folder = tmp_path_factory.mktemp("serving")
    write_job(
        folder / "job.yaml",
        write_planted(folder / "data", named=True, tracks=TRACKS + 1),
        model={"dim": 8, "temperature": 1.0, "score": "dot"},
        train={"epochs": 4},
    )
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder))
    lines = "".join(f"{5000 + row},g{row % GENRES}\n" for row in range(TRACKS))
    (folder / "songs.csv").write_text(f"track,genre\n{lines}", encoding="utf-8")
    return folder


def use(workspace: Path, function: Callable[[TrainedModel], Result]) -> Result:
    return with_trained_model(str(workspace / "run"), None, print, function)


@pytest.fixture(scope="module")
def served(workspace: Path) -> Iterator[ServedModel]:
    """Serve a copy that ranks exactly, with metadata of the tracks."""
    options = VersionOptions(MetadataFile(str(workspace / "songs.csv")), index_from=None)
    use(workspace, lambda model: write_version(model, workspace / "version", options, NullReporter()))
    with closing(ServedModel(workspace / "version")) as opened:
        yield opened


def test_recommendations_are_those_of_the_command(workspace: Path, served: ServedModel) -> None:
    options = RecommendOptions(count=7)
    expected = use(workspace, lambda model: Recommender(model, options, NullReporter()).for_rows(EVERYONE))
    rows_QK, scores_QK = served.recommend(EVERYONE, RankingOptions(k=7))
    np.testing.assert_array_equal(rows_QK, expected.item_QK)
    np.testing.assert_array_equal(scores_QK, expected.score_QK)


def test_damping_and_filters_are_those_of_the_command(workspace: Path, served: ServedModel) -> None:
    where = "genre <> 'g0' AND id > 5020"
    filters = FilterOptions(where, MetadataFile(str(workspace / "songs.csv")), max_per=("genre", 2))
    options = RecommendOptions(6, popularity_damping=0.7, filters=filters)
    expected = use(workspace, lambda model: Recommender(model, options, NullReporter()).for_rows(EVERYONE))
    found = RankingOptions(6, where=where, max_per=("genre", 2), popularity_damping=0.7)
    np.testing.assert_array_equal(served.recommend(EVERYONE, found)[0], expected.item_QK)


def test_known_items_are_left_out_unless_they_are_wanted(served: ServedModel) -> None:
    histories = served.histories.load(EVERYONE)
    for exclude_known in (True, False):
        rows_QK, _ = served.recommend(EVERYONE, RankingOptions(TRACKS, exclude_known=exclude_known))
        known = [
            np.isin(rows_K, histories.lists.items_N[slice(*histories.lists.starts_Q1[query : query + 2])]).any()
            for query, rows_K in enumerate(rows_QK)
        ]
        assert any(known) != exclude_known
        assert all(known) != exclude_known


def test_allow_and_deny_lists_hold_with_exclusions(served: ServedModel) -> None:
    everything, _ = served.recommend(EVERYONE, RankingOptions(TRACKS))
    allow, deny = np.arange(3, TRACKS, 4), np.arange(0, TRACKS, 3)
    options = RankingOptions(5, allow=allow, deny=deny, max_per=("genre", 2))
    rows_QK, scores_QK = served.recommend(EVERYONE, options)
    genre_R = np.arange(TRACKS + 1) % GENRES
    for rows_K, ranked_K in zip(rows_QK, everything, strict=True):
        left = [row for row in ranked_K if row in set(allow) - set(deny) and row >= 0]
        expected: list[int] = []
        for row in left:
            if sum(genre_R[other] == genre_R[row] for other in expected) < 2 and len(expected) < 5:
                expected.append(row)
        assert [row for row in rows_K if row >= 0] == expected
    assert (np.diff(scores_QK, axis=1)[np.isfinite(scores_QK[:, 1:])] <= 0).all()


def test_similar_rows_are_those_of_the_command(workspace: Path, served: ServedModel) -> None:
    rows_Q = np.array([9, 2, 100])
    expected = use(workspace, lambda model: similar_rows(model, "track", rows_Q, 6, FilterOptions()))
    found = served.similar("track", rows_Q, RankingOptions(6))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_new_customers_are_folded_in_as_by_the_command(workspace: Path, served: ServedModel) -> None:
    items, weights = [np.array([8, 13]), np.array([1])], [np.ones(2, np.float32), np.ones(1, np.float32)]
    histories = served.make_histories(items, weights)
    options = RecommendOptions(count=5)
    expected = use(workspace, lambda model: Recommender(model, options, NullReporter()).for_histories(histories))
    rows_QK, _ = served.recommend_to_histories(histories, RankingOptions(5))
    np.testing.assert_array_equal(rows_QK, expected.item_QK)


def test_histories_are_those_of_the_dataset(workspace: Path, served: ServedModel) -> None:
    def load(model: TrainedModel) -> None:
        with closing(LineageReader(model.data, model.manifest)) as lineage:
            expected = load_histories(lineage, ALL_SPLITS, EVERYONE, NullReporter())
        found = served.histories.load(EVERYONE)
        np.testing.assert_array_equal(found.lists.starts_Q1, expected.lists.starts_Q1)
        np.testing.assert_array_equal(found.lists.items_N, expected.lists.items_N)
        np.testing.assert_array_equal(found.weight_N, expected.weight_N)
        some = served.histories.load(np.array([7, 3]))
        np.testing.assert_array_equal(_items(some, 0), _items(expected, 7))
        np.testing.assert_array_equal(_items(some, 1), _items(expected, 3))

    use(workspace, load)


def _items(histories: Histories, query: int) -> IntArray:
    return histories.lists.items_N[slice(*histories.lists.starts_Q1[query : query + 2])]


@pytest.fixture(scope="module")
def indexed(workspace: Path) -> Iterator[ServedModel]:
    """Serve a copy with an index for each score, which scans enough lists to find everything."""
    options = VersionOptions(index_from=1, recall=1.0)
    use(workspace, lambda model: write_version(model, workspace / "indexed", options, NullReporter()))
    with closing(ServedModel(workspace / "indexed")) as opened:
        yield opened


def test_indexes_of_both_scores_find_what_exact_ranking_does(
    served: ServedModel, indexed: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert indexed.card.indexes == ["dot", "cosine"]
    options = RankingOptions(5)
    assert served.is_quick("track", "dot", options)
    limited = RankingOptions(5, max_per=("genre", 1))
    served.recommend(EVERYONE, limited)
    assert not served.is_quick("track", "dot", limited)
    monkeypatch.setattr(served_model, "_QUICK_VALUES", 100)
    assert indexed.is_quick("track", "dot", options)
    assert not served.is_quick("track", "dot", options)
    assert not indexed.is_quick("track", "dot", RankingOptions(5, where="id > 5020"))
    np.testing.assert_array_equal(indexed.recommend(EVERYONE, options)[0], served.recommend(EVERYONE, options)[0])
    rows_Q = np.arange(0, TRACKS, 7)
    found = indexed.similar("track", rows_Q, options)
    np.testing.assert_array_equal(found[0], served.similar("track", rows_Q, options)[0])
    damped = RankingOptions(5, popularity_damping=0.5)
    np.testing.assert_array_equal(indexed.recommend(EVERYONE, damped)[0], served.recommend(EVERYONE, damped)[0])


def test_version_needs_neither_run_nor_dataset(workspace: Path, tmp_path: Path, indexed: ServedModel) -> None:
    expected = indexed.recommend(EVERYONE, RankingOptions(5))
    moved = Path(shutil.copytree(workspace / "indexed", tmp_path / "moved"))
    for hidden in ("run", "data"):
        (workspace / hidden).rename(workspace / f"hidden-{hidden}")
    try:
        with closing(ServedModel(moved)) as opened:
            np.testing.assert_array_equal(opened.recommend(EVERYONE, RankingOptions(5))[0], expected[0])
            opened.metadata.rows_where("count > 3")
            history = opened.make_histories([np.array([1])], [np.ones(1, np.float32)])
            opened.recommend_to_histories(history, RankingOptions(2))
    finally:
        for hidden in ("run", "data"):
            (workspace / f"hidden-{hidden}").rename(workspace / hidden)


def test_damaged_versions_are_rejected(workspace: Path, tmp_path: Path, indexed: ServedModel) -> None:
    version = Path(shutil.copytree(workspace / "indexed", tmp_path / "version"))
    damaged = 0
    for path in sorted(path for path in version.rglob("*") if path.is_file() and path.stat().st_size):
        content = path.read_bytes()
        # A change in the middle of the card may be one in the checksum of another file, which the error then names.
        middle = [len(content) // 2] if path.name != CARD_FILE else []
        for place in (0, *middle, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            damaged += 1
            with pytest.raises(InputError, match=re.escape(str(path))):
                ServedModel(version)
        path.unlink()
        with pytest.raises(InputError, match=re.escape(str(path))):
            ServedModel(version)
        path.write_bytes(content)
    assert damaged > 30
    ServedModel(version).close()


def test_vectors_that_are_not_finite_are_not_published(workspace: Path, tmp_path: Path) -> None:
    def write(model: TrainedModel) -> None:
        vectors = {table.name: np.zeros((table.rows, table.dim), np.float32) for table in model.spec.vectors}
        vectors["track"][7, 2] = np.inf
        write_version(
            replace(model, vectors=ArrayVectors(vectors)), tmp_path / "version", VersionOptions(), NullReporter()
        )

    with pytest.raises(InputError, match="the vector of row 7 of 'track' is not finite"):
        use(workspace, write)


@pytest.mark.parametrize(
    "forbidden",
    [
        "(SELECT count(*) FROM read_csv('songs.csv')) > 0",
        "(SELECT count(*) FROM glob('/etc/*')) > 0",
        "id = any(SELECT 1)",
        "true); DROP TABLE items; SELECT (1",
        "true) UNION SELECT range FROM range(1000000000) WHERE (1",
        "true) ORDER BY repeat('x', 1000000000), (1",
        "true) LIMIT (1",
        "true) GROUP BY (row",
        "true) GROUP BY CUBE(id), (1",
        "true) GROUP BY ALL HAVING (1",
        "true) QUALIFY (1",
        # No limit holds within these: each allocates gigabytes at once.
        "length(repeat('x', 1000000000)) > 1",
        "id::INTEGER[1000000] IS NULL",
        "list_resize([1], 1000000000) IS NULL",
        "list_sum([x FOR x IN range(1000000000)]) > 1",
        "lpad(genre, 1000000000, 'x') > 'x'",
        # Compiled for every row, or to a large program.
        "regexp_matches(name, name || '(.?){1000}(.?){1000}(.?){1000}')",
        "name ~ (genre || '{1000}')",
        "name LIKE name",
        "name LIKE 'a%' ESCAPE genre",
        f"name LIKE '{'%a' * 101}'",
        "name ~ '(.?){1000}'",
        "name SIMILAR TO '((a{9}){9}){9}'",
        "count(*) FILTER (WHERE true) > 1",
        "row_number() OVER () > 1",
        "COLUMNS(*) > 1",
        "x -> x",
        "id = $1",
        "id = 1" + "+1" * 490,
        "/*",
        "\ud800 = 1",
        "",
    ],
)
def test_forbidden_condition_is_rejected(served: ServedModel, forbidden: str) -> None:
    with pytest.raises(InputError, match=r"^where .*(expected|cannot be parsed)"):
        served.metadata.rows_where(forbidden)


def test_operators_and_functions_are_accepted(served: ServedModel) -> None:
    for accepted in (
        "genre = 'g1'",
        "lower(genre) LIKE '_1' AND id::VARCHAR IS NOT NULL AND id % 2 < 3",
        "genre IN ('g1', 'none') OR genre ~ '^x{1,3}' OR count BETWEEN -2 AND -1",
        "CASE WHEN coalesce(genre, '') = 'g' || '1' THEN length(genre) END = 2",
        "genre = 'g1' AND TIMESTAMP '2020-01-01' + INTERVAL 1 DAY < now() -- a comment",
    ):
        assert served.metadata.rows_where(accepted).sum() == TRACKS / GENRES


def stop_evaluating(served: ServedModel) -> None:
    """Stop the processes that evaluate conditions, so that none of the next ones ends before its limit."""
    for process in (served.metadata._quick, served.metadata._slow):
        process.start()
        assert process._process is not None
        assert process._process.pid is not None
        os.kill(process._process.pid, signal.SIGSTOP)


def test_condition_that_takes_long_ends_at_the_limit_and_delays_others_for_a_moment(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_metadata, "QUICK_SECONDS", 0.01)
    monkeypatch.setattr(served_metadata, "MAX_SECONDS", 0.02)
    stop_evaluating(served)
    with pytest.raises(InputError, match=r"took longer than 0\.02 seconds; expected a simpler condition$"):
        served.metadata.rows_where("id > 5001")
    monkeypatch.setattr(served_metadata, "QUICK_SECONDS", 60.0)
    with pytest.raises(InputError, match="took longer"):
        served.metadata.rows_where("id > 5001")  # at once, for a while
    assert served.metadata.rows_where("id > 5002").sum() == TRACKS - 2


def test_slow_conditions_are_rejected_while_others_wait(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_metadata, "QUICK_SECONDS", 0.01)
    stop_evaluating(served)
    for _ in range(served_metadata.MAX_SLOW):
        assert served.metadata._slow_places.acquire(blocking=False)
    with pytest.raises(OverloadedError, match="needs long"):
        served.metadata.rows_where("id > 5003")
    served.metadata._slow_places.release(served_metadata.MAX_SLOW)
    served.metadata._slow._replace()


def test_conditions_and_columns_that_are_invalid_are_named(served: ServedModel) -> None:
    for options, message in (
        (RankingOptions(where="year > 1990"), r"where year > 1990: .*; the columns are id, name, count, genre"),
        (RankingOptions(where="id > 9999"), "where id > 9999: leaves no track"),
        (RankingOptions(max_per=("artist", 2)), "there is no column 'artist' to group by"),
    ):
        with pytest.raises(InputError, match=message):
            served.recommend(EVERYONE[:1], options)
