"""Labels of rows, from files of every format and from features; what is wrong with a source of labels."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import make_interactions, write_data_set

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.recommend.labels import LabelPairs, read_labels
from crossfade.trainer.recommend.options import TagOptions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, DatasetManifest]:
    folder = tmp_path_factory.mktemp("data")
    return Folder(folder), write_data_set(folder, {"train": [[make_interactions([0], [0])]]}, queries=1, items=10)


def read(data: tuple[Folder, DatasetManifest], text: str) -> LabelPairs:
    return read_labels(*data, TagOptions.of(labels=text).labels)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_labels_are_read_from_every_file_format(
    data: tuple[Folder, DatasetManifest], tmp_path: Path, ending: str
) -> None:
    rows = [(3, "rock"), (7, ""), (3, "pop"), (999, "rock"), (5, "rock"), (3, "rock"), (8, "jazz")]
    path = tmp_path / f"labels.{ending}"
    if ending == "parquet":
        lists = {3: ["rock", "pop", "rock"], 7: [""], 999: ["rock"], 5: ["rock"], 8: ["jazz"], 9: None}
        pq.write_table(pa.table({"id": list(lists), "genre": list(lists.values())}), path)
    else:
        separator = {"csv": ",", "tsv": "\t"}[ending]
        path.write_text("\n".join(separator.join(map(str, row)) for row in [("id", "genre"), *rows]))
    labels = read(data, f"track={path}:id:genre")
    assert labels.row_P.tolist() == [3, 3, 5, 8]
    assert labels.label_P.tolist() == [1, 2, 2, 0]


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("track=genres.csv:genre: expected", "track=genres.csv:genre"),
        ("song=…: no such entity", "song=genres.csv:id:genre"),
        ("has no such feature of track", "track=genre"),
        ("track=genres.csv: has a label in 'genre' for none of the ids of", "track=genres.csv:id:genre"),
        ("has no column 'style", "track=genres.csv:id:style"),
        ("track no.csv: no such file", "track=no.csv:id:genre"),
    ],
)
def test_missing_labels_are_rejected(
    data: tuple[Folder, DatasetManifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("genres.csv").write_text("id,genre\nx,rock\n")
    with pytest.raises(InputError) as caught:
        read(data, text)
    assert what in str(caught.value)
