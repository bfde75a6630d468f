"""Versions: the same answers as by the run, exactly and by an index, from copies that need nothing else."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_data import CUSTOMERS, GENRES, TRACKS, write_job, write_planted
from command_here import crossfade_here
from running_command import succeeded
from written_runs import ArrayVectors

from crossfade.base.arrays import BoolArray
from crossfade.base.errors import InputError, OptionError
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.recommend import model
from crossfade.trainer.recommend.metadata_table import MetadataTable
from crossfade.trainer.recommend.model import Model, open_model
from crossfade.trainer.recommend.options import RecommendOptions, SimilarOptions
from crossfade.trainer.runs.options import ModelSource
from crossfade.trainer.serving.served_metadata import Filter
from crossfade.trainer.serving.version import Version, open_version
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
    columns = {"track": 5000 + np.arange(TRACKS), "genre": [f"g{row % GENRES}" for row in range(TRACKS)]}
    styles = [["all", f"Genre {row % GENRES}"] for row in range(TRACKS)]
    pq.write_table(pa.table({**columns, "style": styles}), folder / "songs.parquet")
    return folder


def use(workspace: Path, function: Callable[[Model], Result]) -> Result:
    """Return ``function`` of the model of the run, without a copy."""
    with closing(open_model(ModelSource.of(source=workspace / "run"), print)) as opened:
        return opened.use(function)


def write(workspace: Path, name: str, options: VersionOptions) -> None:
    use(workspace, lambda model: write_version(model.trained, workspace / name, options, NullReporter()))


@pytest.fixture(scope="module")
def version(workspace: Path) -> Iterator[Version]:
    """Open a copy that ranks exactly, with metadata of the tracks."""
    write(workspace, "version", VersionOptions(str(workspace / "songs.parquet"), index_from=None))
    with closing(open_version(workspace / "version")) as opened:
        yield opened


@pytest.fixture
def served(version: Version) -> Model:
    return version.model


@pytest.mark.slow
def test_copy_answers_as_the_run(workspace: Path, served: Model) -> None:
    """Rankings in another order of queries are the same, too; query -1 is unknown."""
    songs = str(workspace / "songs.parquet")
    filters = {"where": "genre <> 'g0' AND id > 5020", "max_per": ("genre", 2)}
    lists = {"allow": [*map(str, range(5003, 5200, 4))], "deny": [*map(str, range(5000, 5200, 3))]}
    everyone_Q = np.append(EVERYONE, -1)[::-1]
    for options in ({"k": 7}, {**filters, "k": 6, "popularity_damping": 0.7}, {**lists, **filters}, {"exclude": ()}):
        ranking = RecommendOptions.of(**options)
        original = RecommendOptions.of(**options, **({"metadata": songs} if "where" in options else {}))
        expected = use(workspace, lambda model, options=original: model.recommend(everyone_Q[::-1], options))
        found = served.recommend(everyone_Q, ranking)
        np.testing.assert_array_equal(found.rows_QK, expected.rows_QK[::-1])
        np.testing.assert_array_equal(found.scores_QK, expected.scores_QK[::-1])
    rows_Q, options = np.array([9, 2, 100]), SimilarOptions.of(k=6)
    for expected, found in zip(
        use(workspace, lambda model: model.similar(rows_Q, options)), served.similar(rows_Q, options), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    histories = served.make_histories(
        [np.array([8, 13]), np.array([1])], [np.ones(2, np.float32), np.ones(1, np.float32)]
    )
    expected = use(workspace, lambda model: model.recommend_to_histories(histories, RecommendOptions()))
    found = served.recommend_to_histories(histories, RecommendOptions())
    np.testing.assert_array_equal(found.rows_QK, expected.rows_QK)


def test_exclusions_are_of_all_splits_or_none(served: Model) -> None:
    with pytest.raises(OptionError, match="exclude train: expected all splits, train valid test, or none"):
        served.recommend(EVERYONE, RecommendOptions.of(exclude="train"))


@pytest.fixture(scope="module")
def indexed(workspace: Path) -> Iterator[Version]:
    """Open a copy with an index for each score, which scans enough lists to find everything."""
    write(workspace, "indexed", VersionOptions(index_from=1, recall=1.0))
    with closing(open_version(workspace / "indexed")) as opened:
        yield opened


def test_indexes_of_both_scores_find_what_exact_ranking_does(
    served: Model, indexed: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert indexed.card.indexes == ["dot", "cosine"]
    options, searched = RecommendOptions(k=5), indexed.model
    assert served.is_quick("track", "dot", options)
    limited = RecommendOptions(k=5, max_per=("genre", 1))
    served.recommend(EVERYONE, limited)
    assert not served.is_quick("track", "dot", limited)
    monkeypatch.setattr(model, "_QUICK_VALUES", 100)
    assert searched.is_quick("track", "dot", options)
    assert not served.is_quick("track", "dot", options)
    assert not searched.is_quick("track", "dot", RecommendOptions(k=5, where="id > 5020"))
    assert not searched.is_quick("track", "dot", RecommendOptions(k=5, diversity=0.2))
    for other in (options, RecommendOptions(k=5, popularity_damping=0.5), RecommendOptions(k=5, diversity=0.2)):
        found = searched.recommend(EVERYONE, other)
        np.testing.assert_array_equal(found.rows_QK, served.recommend(EVERYONE, other).rows_QK)
    rows_Q, similar = np.arange(0, TRACKS, 7), SimilarOptions(k=5)
    np.testing.assert_array_equal(searched.similar(rows_Q, similar)[0], served.similar(rows_Q, similar)[0])


def test_version_needs_neither_run_nor_dataset(workspace: Path, tmp_path: Path, indexed: Version) -> None:
    expected = indexed.model.recommend(EVERYONE, RecommendOptions())
    moved = Path(shutil.copytree(workspace / "indexed", tmp_path / "moved"))
    for hidden in ("run", "data"):
        (workspace / hidden).rename(workspace / f"hidden-{hidden}")
    try:
        with closing(open_version(moved)) as opened:
            found = opened.model.recommend(EVERYONE, RecommendOptions())
            np.testing.assert_array_equal(found.rows_QK, expected.rows_QK)
            opened.metadata.rows_where("count > 3")
            history = opened.model.make_histories([np.array([1])], [np.ones(1, np.float32)])
            opened.model.recommend_to_histories(history, RecommendOptions())
    finally:
        for hidden in ("run", "data"):
            (workspace / f"hidden-{hidden}").rename(workspace / hidden)


@pytest.mark.slow
def test_damaged_versions_are_rejected(workspace: Path, tmp_path: Path, indexed: Version) -> None:
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
                open_version(version)
        path.unlink()
        with pytest.raises(InputError, match=re.escape(str(path))):
            open_version(version)
        path.write_bytes(content)
    assert damaged > 30
    open_version(version).close()


def test_vectors_that_are_not_finite_are_not_published(workspace: Path, tmp_path: Path) -> None:
    def write(model: Model) -> None:
        vectors = {name: np.zeros((table.rows, table.dim), np.float32) for name, table in model.tables.items()}
        vectors["track"][7, 2] = np.inf
        changed = replace(model.trained, vectors=ArrayVectors(vectors))
        write_version(changed, tmp_path / "version", VersionOptions(), NullReporter())

    with pytest.raises(InputError, match="the vector of row 7 of 'track' is not finite"):
        use(workspace, write)


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ([("genre", "eq", "g1")], TRACKS // GENRES),
        ([("genre", "ne", "g1")], TRACKS - TRACKS // GENRES),
        ([("genre", "in", ["g1", "g2", "none", "it's"])], 2 * TRACKS // GENRES),
        ([("id", "ge", 5001), ("id", "lt", 5004.5), ("id", "le", 5003), ("id", "gt", 5001)], 2),
        ([("style", "eq", "Genre 1")], TRACKS // GENRES),
        ([("style", "in", ["Genre 1", "Genre 2"])], 2 * TRACKS // GENRES),
        ([("style", "ne", "Genre 1")], TRACKS + 1 - TRACKS // GENRES),  # one has none
        ([("style", "lt", "Genre 1")], TRACKS // GENRES),
        ([("genre", "eq", "g1') OR ('' = '")], 0),
        ([("name", "eq", "\\' OR true --")], 0),
    ],
)
def test_filters_keep_the_rows_that_meet_all(version: Version, filters: list[Filter], rows: int) -> None:
    assert version.metadata.rows_where(version.metadata.condition(filters)).sum() == rows


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ([("year", "gt", 1990)], "where: there is no column 'year'; the columns are id, name, count, genre, style$"),
        ([('id" = 1 OR "id', "eq", 1)], "where: there is no column 'id\" = 1 OR"),
        ([("genre", "gt", 5)], "where .*: .*Cannot compare values of type VARCHAR"),
        ([("style", "in", ["Genre 1", 5])], "where .*: .*Could not convert string"),
    ],
)
def test_filters_that_cannot_be_met_are_rejected(version: Version, filters: list[Filter], message: str) -> None:
    with pytest.raises(InputError, match=message):
        version.metadata.rows_where(version.metadata.condition(filters))


def test_answers_at_hand_wait_for_no_other(version: Version) -> None:
    metadata = version.metadata
    kept_R = metadata.rows_where("count > 0")

    def meanwhile(_: str) -> BoolArray:
        with pytest.raises(InputError, match="there is no column 'year'"):
            metadata.condition([("year", "gt", 1990)])
        return metadata.rows_where("count > 0")

    with mock.patch.object(MetadataTable, "rows_where", side_effect=meanwhile):
        assert (metadata.rows_where("count > 1") == kept_R).all()
