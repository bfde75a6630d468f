"""Embeddings as Parquet: written from a store, read back by rows, and replaced completely."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import ITEM, QUERY, write_vocabulary
from written_runs import ArrayVectors

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.embeddings import files as module
from crossfade.trainer.embeddings.files import EmbeddingFiles, write_embeddings
from crossfade.trainer.embeddings.listing import LISTING_FILE
from crossfade.trainer.embeddings.staged import StagedEmbeddings

QUERIES, ITEMS = 23, 7
TABLES = [TableSpec(QUERY, QUERIES, 3, 0.1), TableSpec(ITEM, ITEMS, 5, 0.1)]
CUSTOMER_IDS = [1000 + 3 * row for row in range(QUERIES)]
TRACK_IDS = [f"track:{row}" for row in range(ITEMS)]
TRACK_NAMES = ["Ágætis byrjun", None, "Blue in Green", "", "東京", "Così", "Z"]


@pytest.fixture
def vocabularies(tmp_path: Path) -> dict[str, Vocabulary]:
    """Write customers without names in several files and row groups, and tracks with names in one."""
    entities = {
        QUERY: write_vocabulary(tmp_path, QUERY, CUSTOMER_IDS, file_rows=10, group_rows=4),
        ITEM: write_vocabulary(tmp_path, ITEM, TRACK_IDS, names=TRACK_NAMES),
    }
    manifest = DatasetManifest(query=QUERY, item=ITEM, entities=entities, splits={})
    return {name: Vocabulary(Folder(tmp_path), manifest, name) for name in entities}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write files of 8 rows in row groups of 3, which do not align with each other or the vocabulary's row groups."""
    monkeypatch.setattr(module, "FILE_ROWS", 8)
    monkeypatch.setattr(module, "GROUP_ROWS", 3)


def store_of(seed: int) -> LocalStore:
    store = LocalStore()
    store.create(TABLES, OptimizerSpec("sgd"), seed)
    return store


def tables_of(store: LocalStore) -> dict[str, FloatArray]:
    return store.pull({table.name: np.arange(table.rows) for table in TABLES})


@pytest.fixture
def store() -> Iterator[LocalStore]:
    store = store_of(1)
    yield store
    store.close()


@pytest.fixture
def written(tmp_path: Path, store: LocalStore, vocabularies: dict[str, Vocabulary], small_pieces: None) -> Path:
    folder = tmp_path / "embeddings"
    write_embeddings(store, TABLES, vocabularies, folder, ArrayVectors(tables_of(store)))
    return folder


def test_ids_rows_vectors_and_names_read_back_equal(written: Path, store: LocalStore) -> None:
    files = EmbeddingFiles(written)
    assert files.entities == [QUERY, ITEM]
    for entity, ids in ((QUERY, CUSTOMER_IDS), (ITEM, TRACK_IDS)):
        table = pq.read_table(written / entity)
        assert table.column("id").to_pylist() == ids
        assert table.column("row").to_pylist() == list(range(len(ids)))
        np.testing.assert_array_equal(files.vectors(entity, np.arange(len(ids))), tables_of(store)[entity])
    assert pq.read_table(written / QUERY).column_names == ["id", "row", "vector"]
    with pytest.raises(InputError, match="no embeddings of 'artist'; it has those of customer, track"):
        files.rows("artist")
    with pytest.raises(InputError, match="has 23 rows, but row 23 was requested"):
        files.vectors(QUERY, np.array([0, 23]))
    assert pq.read_table(written / ITEM).column("name").to_pylist() == TRACK_NAMES


@pytest.mark.parametrize(
    "rows",
    [[], [7, 8], [2, 3, 15, 16], list(range(23)), list(range(1, 23, 4))],
    ids=str,
)
def test_vectors_of_any_rows_match_the_store(written: Path, store: LocalStore, rows: list[int]) -> None:
    rows_N = np.array(rows, np.int64)
    vectors_ND = EmbeddingFiles(written).vectors(QUERY, rows_N)
    assert vectors_ND.dtype == np.float32
    np.testing.assert_array_equal(vectors_ND, tables_of(store)[QUERY][rows_N])


def test_writing_again_replaces_the_complete_folder(
    tmp_path: Path, written: Path, vocabularies: dict[str, Vocabulary], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_ROWS", 100)
    (written.with_name(".embeddings.partial") / QUERY).mkdir(parents=True)  # what an interrupted run left
    (written.with_name(".embeddings.partial") / QUERY / "rows-000000000008.parquet").write_bytes(b"half a file")
    other = store_of(2)
    write_embeddings(other, TABLES, vocabularies, written, ArrayVectors(tables_of(other)))
    assert [path.name for path in (written / QUERY).iterdir()] == ["rows-000000000000.parquet"]
    np.testing.assert_array_equal(EmbeddingFiles(written).vectors(ITEM, np.arange(ITEMS)), tables_of(other)[ITEM])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings", "vocabulary"]


def test_each_worker_writes_its_part_of_the_files(
    tmp_path: Path, vocabularies: dict[str, Vocabulary], small_pieces: None
) -> None:
    class OneOfTwo(LocalStore):
        rank = 1
        workers = 2

    second = OneOfTwo()
    second.create(TABLES, OptimizerSpec("sgd"), seed=1)
    write_embeddings(second, TABLES, vocabularies, tmp_path / "embeddings", ArrayVectors(tables_of(second)))
    assert [path.name for path in (tmp_path / ".embeddings.partial" / QUERY).iterdir()] == ["rows-000000000008.parquet"]
    assert not (tmp_path / "embeddings").exists(), "only the first worker moves the folder into place"


def test_folder_without_embeddings_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no embeddings; expected a folder that 'crossfade train'"):
        EmbeddingFiles(tmp_path)
    with pytest.raises(InputError, match="holds no embeddings"):
        EmbeddingFiles(tmp_path / "missing")


def corrupt_page(path: Path) -> None:
    """Change the last bytes of a page: without a checksum, they would be other values."""
    column = pq.read_metadata(path).row_group(0).column(2)
    content = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    content[begin + column.total_compressed_size - 4] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: path.write_bytes(b""), "has .* it was truncated or replaced"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "has .* it was truncated or replaced"),
        (corrupt_page, "cannot be read"),
        (Path.unlink, r"no such file, but embeddings\.json lists it"),
    ],
)
def test_damaged_or_missing_file_is_rejected_by_name(
    written: Path, change: Callable[[Path], object], problem: str
) -> None:
    change(written / QUERY / "rows-000000000008.parquet")
    files = EmbeddingFiles(written)
    with pytest.raises(InputError, match=rf"rows-000000000008\.parquet: {problem}"):
        files.vectors(QUERY, np.array([9]))


@pytest.mark.parametrize(
    "listing",
    [
        b"{",
        b"\xff",
        b'{"format": "crossfade-embeddings", "version": 2, "files": []}',
        b'{"format": "crossfade-embeddings", "version": 1, "files": []}',
        b'{"format": "crossfade-embeddings", "version": 1, "files": [{"path": "../../etc/passwd", "bytes": 1, '
        b'"footer_crc32": 1, "row_groups": [1]}]}',
    ],
)
def test_invalid_lists_of_embeddings_are_rejected(written: Path, listing: bytes) -> None:
    (written / LISTING_FILE).write_bytes(listing)
    with pytest.raises(InputError, match=r"embeddings\.json: (is not a list of|lists no) embeddings"):
        EmbeddingFiles(written)
    (written / LISTING_FILE).unlink()
    with pytest.raises(InputError, match=r"has no embeddings\.json, which has the checksums"):
        EmbeddingFiles(written)


def test_vectors_that_are_not_finite_are_rejected(
    tmp_path: Path, store: LocalStore, vocabularies: dict[str, Vocabulary], small_pieces: None
) -> None:
    values = tables_of(store)
    values[QUERY][9, 1] = np.nan
    write_embeddings(store, TABLES, vocabularies, tmp_path / "bad", ArrayVectors(values))
    files = EmbeddingFiles(tmp_path / "bad")
    assert np.isfinite(files.vectors(QUERY, np.arange(8))).all()
    with pytest.raises(InputError, match=r"rows-000000000008\.parquet: the vector of row 9 is not finite"):
        files.vectors(QUERY, np.arange(QUERIES))


def test_staged_embeddings_are_those_of_the_latest_epoch(
    tmp_path: Path, store: LocalStore, vocabularies: dict[str, Vocabulary], small_pieces: None
) -> None:
    staged, scratch = StagedEmbeddings(str(tmp_path / "checkpoints")), tmp_path / "scratch"
    assert staged.epoch() is None
    with pytest.raises(FileNotFoundError, match="no embeddings are staged"):
        staged.fetch(tmp_path / "embeddings")
    for repeated in (1, 7):  # 7 is of an attempt that has failed since
        staged.stage(store, TABLES, vocabularies, repeated, scratch, ArrayVectors(tables_of(store_of(2))))
    staged.stage(store, TABLES, vocabularies, 4, scratch, ArrayVectors(tables_of(store)))
    assert staged.epoch() == 4
    assert [path.name for path in (tmp_path / "checkpoints" / "embeddings").iterdir()] == ["epoch-000004"]
    assert not scratch.exists()
    staged.fetch(tmp_path / "embeddings")
    for files in (EmbeddingFiles(tmp_path / "embeddings"), EmbeddingFiles(staged.folder())):
        np.testing.assert_array_equal(files.vectors(QUERY, np.arange(QUERIES)), tables_of(store)[QUERY])
        assert files.rows(ITEM) == ITEMS


def test_incomplete_staged_embeddings_are_ignored(
    tmp_path: Path, store: LocalStore, vocabularies: dict[str, Vocabulary], small_pieces: None
) -> None:
    staged = StagedEmbeddings(str(tmp_path / "checkpoints"))
    staged.stage(store, TABLES, vocabularies, 4, tmp_path / "scratch", ArrayVectors(tables_of(store)))
    [first, *_] = sorted((tmp_path / "checkpoints").rglob("rows-*.parquet"))
    data = first.read_bytes()
    first.write_bytes(data[:-1])
    assert staged.epoch() is None
    first.unlink()
    assert staged.epoch() is None
    first.write_bytes(data)
    assert staged.epoch() == 4
