"""Label precision against a plain implementation, with labels from files and several labels per row."""

from contextlib import closing
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import ITEM, QUERY, make_interactions, random_rows, write_data_set

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.evaluation import label_precision as geometry
from crossfade.trainer.evaluation.label_precision import LabelPrecision, label_precision
from crossfade.trainer.evaluation.labels import LabelPairs, read_labels
from crossfade.trainer.evaluation.options import EvaluateOptions, LabelSource
from crossfade.trainer.model.spec import ModelSpec, Score

QUERIES, ITEMS, DIM, LABELS = 40, 60, 5, 6


class Vectors:
    """Embeddings in memory."""

    def __init__(self) -> None:
        self.tables = {QUERY: random_rows(QUERIES, DIM, 1), ITEM: random_rows(ITEMS, DIM, 2)}

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        return self.tables[entity][rows_N]


def source_of(text: str) -> LabelSource:
    source = EvaluateOptions.of(source="run", labels=text).labels
    assert source is not None
    return source


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, DatasetManifest, FloatArray]:
    """Return a dataset with repeated pairs and weights of both signs, and its positive counts, (queries, items)."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(5)
    query_N = draw.integers(0, QUERIES, 900)
    item_N = np.minimum(draw.geometric(0.06, 900), ITEMS) - 1
    weight_N = draw.choice([-1.0, 2.0, 0.5], 900)
    groups = [
        make_interactions(query_N[part], item_N[part], weight_N[part]) for part in (slice(0, 500), slice(500, 900))
    ]
    counts_QI = np.zeros((QUERIES, ITEMS))
    np.add.at(counts_QI, (query_N[weight_N > 0], item_N[weight_N > 0]), 1)
    return Folder(folder), write_data_set(folder, {"train": [groups]}, queries=QUERIES, items=ITEMS), counts_QI


def labels_of(seed: int, rows: int) -> LabelPairs:
    """Return one to three labels for most rows."""
    draw = np.random.default_rng(seed)
    pairs = sorted({(row, draw.integers(LABELS)) for row in range(rows) if row % 7 for _ in range(3)})
    return LabelPairs(*(np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True)))


def plain(score_SS: FloatArray, labels: list[set[int]], *, positive: bool = False) -> float:
    shares = []
    for s, row in enumerate(score_SS):
        order = sorted((t for t in range(len(row)) if t != s and (row[t] > 0 or not positive)), key=lambda t: -row[t])
        if near := order[:10]:
            shares.append(sum(bool(labels[s] & labels[t]) for t in near) / len(near))
    return float(np.mean(shares))


@pytest.mark.slow
@pytest.mark.parametrize("entity", [QUERY, ITEM])
@pytest.mark.parametrize("kind", get_args(ScoreKind))
def test_precision_matches_plain_implementation(
    data: tuple[Folder, DatasetManifest, FloatArray], entity: str, kind: ScoreKind
) -> None:
    folder, manifest, counts_QI = data
    counts_RC = counts_QI if entity == QUERY else counts_QI.T
    labels, source, min_count = labels_of(3, len(counts_RC)), Vectors(), 9
    precision = measure(folder, manifest, source, entity, kind, labels, counts_RC, min_count=min_count)
    row_S = [row for row in sorted(set(labels.row_P.tolist())) if counts_RC[row].sum() >= min_count]
    sets = [set(labels.label_P[labels.row_P == row].tolist()) for row in row_S]
    vector_SD = source.tables[entity][row_S].astype(np.float64)
    if kind == "cosine":
        vector_SD /= np.linalg.norm(vector_SD, axis=1, keepdims=True)
    score_SS = vector_SD @ vector_SD.T
    if kind == "euclidean":
        score_SS = 2 * score_SS - np.square(vector_SD).sum(axis=1)
    unit_SC = counts_RC[row_S] / np.linalg.norm(counts_RC[row_S], axis=1, keepdims=True)
    chance = np.mean([[bool(one & other) for other in sets] for one in sets])
    assert precision["precision"] == pytest.approx(plain(score_SS, sets))
    assert precision["precision_of_counts"] == pytest.approx(
        plain(np.round(unit_SC @ unit_SC.T, 12), sets, positive=True)
    )
    assert precision["precision_by_chance"] == pytest.approx(
        (chance * len(sets) ** 2 - len(sets)) / len(sets) / (len(sets) - 1)
    )
    assert (precision["rows"], precision["sampled"], precision["labels"]) == (len(row_S), len(row_S), LABELS)
    assert 10 < len(row_S) < len(counts_RC)


def measure(
    folder: Folder,
    manifest: DatasetManifest,
    source: Vectors,
    entity: str,
    kind: ScoreKind,
    labels: LabelPairs,
    counts_RC: FloatArray,
    min_count: int = 1,
) -> LabelPrecision:
    model = ModelSpec(TableSpec(QUERY, QUERIES, DIM, 0.1), TableSpec(ITEM, ITEMS, DIM, 0.1), Score.of(kind, 0.2))
    counts_R = counts_RC.sum(axis=1).astype(np.int64)
    with closing(LineageReader(folder, manifest, 2)) as lineage:
        return label_precision(source, model, lineage, entity, labels, counts_R, min_count=min_count, seed=4)


def test_sampled_rows_are_compared_with_all(
    data: tuple[Folder, DatasetManifest, FloatArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest, counts_QI = data
    labels = labels_of(3, ITEMS)
    complete, source = measure(folder, manifest, Vectors(), ITEM, "cosine", labels, counts_QI.T), Vectors()
    monkeypatch.setattr(geometry, "MAX_SAMPLED_ROWS", 20)
    some = [measure(folder, manifest, source, ITEM, "cosine", labels, counts_QI.T) for _ in range(2)]
    assert some[0] == some[1] != complete
    assert (some[0]["sampled"], some[0]["rows"]) == (20, complete["rows"])
    monkeypatch.setattr(geometry, "MAX_COUNTED_INTERACTIONS", 500)
    fewer = measure(folder, manifest, source, ITEM, "cosine", labels, counts_QI.T)
    assert fewer["precision"] == some[0]["precision"]
    assert fewer["precision_of_counts"] != some[0]["precision_of_counts"]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_labels_are_read_from_every_file_format(
    data: tuple[Folder, DatasetManifest, FloatArray], tmp_path: Path, ending: str
) -> None:
    rows = [(3, "rock"), (7, ""), (3, "pop"), (999, "rock"), (5, "rock"), (3, "rock"), (8, "jazz")]
    path = tmp_path / f"labels.{ending}"
    if ending == "parquet":
        lists = {3: ["rock", "pop", "rock"], 7: [""], 999: ["rock"], 5: ["rock"], 8: ["jazz"], 9: None}
        pq.write_table(pa.table({"id": list(lists), "genre": list(lists.values())}), path)
    else:
        path.write_text(
            "\n".join({"csv": ",", "tsv": "\t"}[ending].join(map(str, row)) for row in [("id", "genre"), *rows])
        )
    labels = read_labels(*data[:2], source_of(f"{ITEM}={path}:id:genre"))
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
    data: tuple[Folder, DatasetManifest, FloatArray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("genres.csv").write_text("id,genre\nx,rock\n")
    with pytest.raises(InputError) as caught:
        read_labels(*data[:2], source_of(text))
    assert what in str(caught.value)


def test_too_few_labeled_rows_are_rejected(data: tuple[Folder, DatasetManifest, FloatArray]) -> None:
    labels = LabelPairs(np.array([0, 1]), np.array([0, 0]))
    with pytest.raises(InputError) as caught:
        measure(*data[:2], Vectors(), ITEM, "cosine", labels, data[2].T, min_count=10**6)
    assert "rows of track with a label and" in str(caught.value)
