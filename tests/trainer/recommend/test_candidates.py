"""Candidates by IDs, conditions on metadata, and groups; and what is said about filters that cannot work."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import write_groups, write_manifest, write_vocabulary

from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest, Feature
from crossfade.trainer.data.parquet import file_entry
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.recommend.candidates import Candidates, filter_rows
from crossfade.trainer.recommend.options import FilterOptions, RankingOptions
from crossfade.trainer.recommend.trained_model import TrainedModel

NAMES = ["Jazz One", "Jazz Two", "Rock One", "Rock Two", "Both", None]
TAGS = ["jazz", "rock", None]
PAIRS = [(0, 0), (1, 0), (2, 1), (3, 1), (4, 0), (4, 1), (4, 2)]
SONGS = """\
track,genre,year,name,label
5000,jazz,1959,ignored,"Blue, Note"
5001,jazz,1994,ignored,Verve
5002,rock,1994,ignored,
5003,rock,,ignored,Verve
5004,jazz,1970,ignored,Verve
5004,rock,2001,ignored,Sub Pop
9999,rock,2001,ignored,Sub Pop
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write six tracks, of which the fifth has both tags and the last is vacant."""
    folder = tmp_path_factory.mktemp("data")
    track = write_vocabulary(folder, "track", range(5000, 5006), names=NAMES, counts=[9, 7, 5, 3, 1, 0])
    pairs = pa.table({"row": [row for row, _ in PAIRS], "value": [value for _, value in PAIRS]})
    write_groups(folder / "features/track/tag/part-0.parquet", [pairs.slice(0, 3), pairs.slice(3)])
    entities = {
        "customer": write_vocabulary(folder, "customer", ["c0"]),
        "track": track.model_copy(update={"vacant_rows": [5]}),
        "tag": write_vocabulary(folder, "tag", [70, 71, 72], names=TAGS),
    }
    tag = Feature(files=[file_entry(Folder(folder), "features/track/tag/part-0.parquet")])
    write_manifest(folder, entities, {}, {"track": {"tag": tag}})
    (folder / "songs.csv").write_text(SONGS)
    (folder / "songs.tsv").write_text(SONGS.replace('"Blue, Note"', "Blue Note").replace(",", "\t"))
    table = pa.table({"song": [5000, 5003], "year": pa.array([1959, 2003], pa.int32())})
    pq.write_table(table, folder / "songs.parquet")
    return folder


@dataclass
class Data:
    """What candidates need of a trained model."""

    data: Folder
    manifest: DatasetManifest

    def counts(self, entity: str) -> IntArray:
        return LineageReader(self.data, self.manifest).counts(entity)

    def vocabulary(self, entity: str) -> Vocabulary:
        return Vocabulary(self.data, self.manifest, entity)


def select(data: Path, **options: object) -> Candidates:
    manifest = DatasetManifest.model_validate_json((data / "manifest.json").read_bytes())
    return filter_rows(cast(TrainedModel, Data(Folder(data), manifest)), "track", RankingOptions.of(**options))


def kept(data: Path, **options: object) -> list[int]:
    return np.flatnonzero(select(data, **options).kept_R).tolist()


def test_vacant_rows_are_no_candidates(data: Path) -> None:
    assert kept(data) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("count >= 5", [0, 1, 2]),
        ("name LIKE 'Jazz%'", [0, 1]),
        ("id IN (5000, 5004)", [0, 4]),
        ("list_contains(tag, 'jazz')", [0, 1, 4]),
        ("list_contains(tag, '72')", [4]),
        ("len(tag) = 1 AND count < 6 -- a comment", [2, 3]),
    ],
)
def test_condition_on_the_dataset(data: Path, condition: str, rows: list[int]) -> None:
    assert kept(data, where=condition) == rows


@pytest.mark.parametrize("name", ["songs.csv", "songs.tsv"])
@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("genre = 'jazz' AND year > 1960", [1, 4]),
        ("genre = 'rock'", [2, 3, 4]),
        ("year IS NULL", [3]),
        ("year = 1994 AND list_contains(tag, 'rock')", [2]),
        ("name = 'Both' AND label = 'Verve'", [4]),
    ],
)
def test_condition_on_a_metadata_file(data: Path, name: str, condition: str, rows: list[int]) -> None:
    assert kept(data, where=condition, metadata=data / name) == rows


@pytest.mark.parametrize("ids", [np.array([7, 8]), [np.int32(7), 8], np.array(["7", "8"]), ["7", np.str_("8")]])
def test_ids_may_be_numbers_and_texts_of_numpy(ids: object) -> None:
    assert FilterOptions.of(allow=ids).allow == FilterOptions.of(deny=ids).deny == ("7", "8")
    assert FilterOptions.of(allow=np.int64(7)).allow == ("7",)


@pytest.mark.slow
def test_groups_come_from_a_feature_or_a_column(data: Path) -> None:
    by_tag = select(data, max_per=("tag", 2))
    assert by_tag.max_per_group == 2
    assert by_tag.groups is not None
    assert by_tag.groups.starts_L1.tolist() == [0, 1, 2, 3, 4, 7, 7]
    lists = np.split(by_tag.groups.values_N, by_tag.groups.starts_L1[1:-1])
    assert lists[0] == lists[1]
    assert lists[2] == lists[3]
    assert set(lists[0]) | set(lists[2]) < set(lists[4])
    by_year = select(data, max_per=("year", 1), metadata=data / "songs.csv").groups
    assert by_year is not None
    assert by_year.counts_L.tolist() == [1, 1, 1, 0, 2, 0]
    assert by_year.values_N.tolist() == [0, 2, 2, 1, 3]  # 1959, 1994, 1994, 1970, 2001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "yeer > 1990"}, "where yeer > 1990: .*the columns are id, name, count, tag; further columns come"),
        ({"where": "count >"}, r"where count >: .*syntax error"),
        ({"where": "true) UNION SELECT 99 --"}, "where .*syntax error"),
        (
            {"where": "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0"},
            "where .*file system operations are disabled",
        ),
        ({"max_per": ("artist", 1)}, "there is no column 'artist' to group by; the columns are id, name, count"),
        ({"metadata": "{data}/none.csv", "where": "year > 1"}, "metadata .*none.csv: no such file"),
        (
            {"metadata": "{data}/songs.parquet", "where": "year > 1"},
            "songs.parquet: has no column 'track' or 'track_id' or 'id' of IDs, but song, year; rename one",
        ),
    ],
)
def test_filter_that_cannot_work_is_explained(data: Path, options: dict[str, object], message: str) -> None:
    named = {name: value.format(data=data) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(InputError, match=message):
        select(data, **named)
