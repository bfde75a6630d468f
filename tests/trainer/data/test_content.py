"""Content of prepared data: numbers and vectors read from files of users, scaled, carried on, checked and forgotten."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.cli.main import main
from crossfade.trainer.data.features import iter_content, load_content
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.parquet import file_entry
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.prepare.options import ValidateOptions
from crossfade.trainer.prepare.summary import format_summary
from crossfade.trainer.prepare.validate import validate

pytestmark = pytest.mark.slow

# Track 14 is in test alone; 99 is in no event.
EVENTS = [("ann", 10), ("ann", 11), ("bob", 10), ("bob", 12), ("cid", 13), ("cid", 10)]
AUDIO = {10: [1.0, 2.0], 11: [-3.0, 0.5], 12: None, 14: [0.0, 4.0], 99: [5.0, 5.0]}
TEMPO = {10: 90.0, 11: 120.0, 12: float("nan"), 13: 150.0, 14: None}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write events, and content in Parquet (lists of fixed size, floats) and in text; and prepare them."""
    folder = tmp_path_factory.mktemp("prepared") / "raw"
    folder.mkdir()
    customers, tracks = zip(*EVENTS, strict=True)
    pq.write_table(pa.table({"customer": customers, "track": tracks}), folder / "train.parquet")
    (folder / "test.csv").write_text("customer,track\nann,14\nbob,13\n")
    audio = pa.array(list(AUDIO.values()), pa.list_(pa.float64(), 2))
    pq.write_table(pa.table({"id": list(AUDIO), "audio": audio}), folder / "audio.parquet")
    pq.write_table(pa.table({"id": list(TEMPO), "tempo": list(TEMPO.values())}), folder / "tempo.parquet")
    (folder / "text.csv").write_text('id,year,text\n10,1990,"[0.5, 1]"\n11,,"[2, -1]"\n13,2010,\n')
    prepare(folder, folder.parent / "data", *options(folder))
    return folder.parent


@pytest.fixture
def raw(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared / "raw", tmp_path / "raw"))


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared / "data", tmp_path / "data"))


def options(raw: Path) -> list[str]:
    return [
        *("--content", f"track={raw}/audio.parquet:id:audio"),
        *("--content", f"track={raw}/tempo.parquet:id:speed=tempo"),
        *("--content", f"track={raw}/text.csv:id:year,text"),
    ]


def prepare(raw: Path, out: Path, *more: str, train: str = "train.parquet") -> Path:
    files = ["--train", str(raw / train), "--test", str(raw / "test.csv"), "--item", "track"]
    assert main(["prepare", *files, *more, "--out", str(out)]) == 0
    return out


def ids(data: Path) -> list[Any]:
    manifest = read_manifest(Folder(data))
    return list(Vocabulary(Folder(data), manifest, "track").read(0, manifest.entities["track"].rows)["id"].to_pylist())


def values(data: Path, name: str) -> dict[Any, list[float]]:
    """Return the stored values by ID."""
    manifest, row_ids = read_manifest(Folder(data)), ids(data)
    return {
        row_ids[row]: value.tolist()
        for _, row_N, value_ND in iter_content(Folder(data), manifest, "track", name)
        for row, value in zip(row_N, value_ND, strict=True)
    }


def problems(data: Path) -> Sequence[str]:
    return validate(ValidateOptions.of(data=data), NullReporter()).problems.listed


def test_values_are_joined_by_id_and_missing_ones_left_out(data: Path) -> None:
    assert values(data, "audio") == {10: [1.0, 2.0], 11: [-3.0, 0.5], 14: [0.0, 4.0]}
    assert values(data, "speed") == {10: [90.0], 11: [120.0], 13: [150.0]}
    assert values(data, "year") == {10: [1990.0], 13: [2010.0]}
    assert values(data, "text") == {10: [0.5, 1.0], 11: [2.0, -1.0]}
    summary = format_summary(read_manifest(Folder(data)), Folder(data))
    assert "content audio: 2 numbers, in 3 of 5 rows; 1 id without an event ignored" in summary
    assert problems(data) == []


def test_scaling_is_that_of_the_manifest_and_missing_values_are_masked(data: Path) -> None:
    manifest = read_manifest(Folder(data))
    speed, audio = (manifest.content["track"][name] for name in ("speed", "audio"))
    assert (speed.mean, speed.std) == pytest.approx((120.0, np.std([90, 120, 150])))
    flat = np.array([1, 2, -3, 0.5, 0, 4])
    assert (audio.mean, audio.std) == (0.0, pytest.approx(np.sqrt(np.mean(flat**2))))
    content = load_content(Folder(data), manifest, "track", ["audio", "speed"])
    row = {track: row for row, track in enumerate(ids(data))}
    np.testing.assert_allclose(content.values_RF[row[11]], [-3 / audio.std, 0.5 / audio.std, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(content.values_RF[row[13]], [0, 0, 1, 30 / speed.std, 0], atol=1e-6)
    np.testing.assert_array_equal(content.values_RF[row[12]], [0, 0, 1, 0, 1])
    assert content.filled_R[[row[track] for track in (10, 11, 12, 13, 14)]].tolist() == [True, True, False, True, True]


@pytest.mark.slow
def test_catalog_gives_rows_to_ids_of_content(raw: Path, tmp_path: Path) -> None:
    data = prepare(raw, tmp_path / "data", *options(raw), "--catalog", "track")
    assert 99 in ids(data)
    assert values(data, "audio")[99] == [5.0, 5.0]


@pytest.mark.slow
def test_threads_and_row_groups_do_not_change_the_scaling(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(1).normal(1e3, 7, 5000)
    pq.write_table(pa.table({"id": np.arange(5000), "tempo": draw}), raw / "tempo.parquet", row_group_size=100)
    found = set()
    for number, (threads, batch_rows) in enumerate((("1", 1 << 14), ("2", 100))):
        monkeypatch.setattr("crossfade.trainer.prepare.attribute_columns._BATCH_ROWS", batch_rows)
        content = ["--content", f"track={raw}/tempo.parquet:id:tempo", "--catalog", "track", "--threads", threads]
        found.add((prepare(raw, tmp_path / f"data{number}", *content) / "manifest.json").read_bytes())
    assert len(found) == 1
    column = read_manifest(Folder(tmp_path / "data0")).content["track"]["tempo"]
    assert (column.mean, column.std) == pytest.approx((draw.mean(), draw.std()), rel=1e-5)


@pytest.mark.slow
def test_base_dataset_keeps_values_and_scaling(raw: Path, tmp_path: Path, data: Path) -> None:
    before = read_manifest(Folder(data)).content["track"]
    new = {11: 200.0, 12: 220.0}
    pq.write_table(pa.table({"id": list(new), "tempo": list(new.values())}), raw / "new.parquet")
    later = prepare(
        raw, tmp_path / "later", "--base", str(data), "--content", f"track={raw}/new.parquet:id:speed=tempo"
    )
    assert values(later, "speed") == {10: [90.0], 11: [200.0], 12: [220.0], 13: [150.0]}
    assert values(later, "audio") == values(data, "audio")
    after = read_manifest(Folder(later)).content["track"]
    for name, column in before.items():
        assert (after[name].mean, after[name].std) == (column.mean, column.std)
    assert problems(later) == []


def test_forgotten_ids_lose_their_content(tmp_path: Path, data: Path) -> None:
    (tmp_path / "ids.csv").write_text("track\n11\n")
    assert main(["forget", str(data), "--entity", "track", "--ids", str(tmp_path / "ids.csv")]) == 0
    assert values(data, "audio") == {10: [1.0, 2.0], 14: [0.0, 4.0]}
    assert values(data, "speed") == {10: [90.0], 13: [150.0]}
    assert problems(data) == []
    stored = [path.name for path in (data / "content/track/audio").iterdir()]
    assert len(stored) == 1


def rewrite(data: Path, name: str, rows: Any, lists: Any) -> None:
    """Replace the only file of a column, and its entry in the manifest."""
    manifest = read_manifest(Folder(data))
    column = manifest.content["track"][name]
    pq.write_table(pa.table({"row": pa.array(rows, pa.int64()), "value": lists}), data / column.files[0].path)
    files = [file_entry(Folder(data), column.files[0].path)]
    content = {"track": {**manifest.content["track"], name: column.model_copy(update={"files": files})}}
    manifest.model_copy(update={"content": content}).write(Folder(data))


@pytest.mark.slow
def test_unusable_stored_content_is_reported(data: Path) -> None:
    ok = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))
    for rows, lists, expected in (
        ([1, 0], ok, "of track, sorted and each once"),
        ([0, 9], ok, "of track, sorted and each once"),
        ([0, 1], ok.cast(pa.list_(pa.float64(), 2)), "expected lists of 2 float32 numbers"),
        ([0, 1], pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1)), "expected lists of 2 float32 numbers"),
        ([0, 1], pa.array([[1.0, 2.0], None], pa.list_(pa.float32())), "expected lists of 2 float32 numbers"),
        ([0, 1], pa.array([[1.0, 2.0], [1.0]], pa.list_(pa.float32())), "expected lists of 2 float32 numbers"),
        ([0, 1], pa.array([[1.0, 2.0], [1.0, np.inf]], pa.list_(pa.float32(), 2)), "numbers that are null or not"),
    ):
        rewrite(data, "audio", rows, lists)
        [problem] = problems(data)
        assert expected in problem
        assert "content/track/audio/" in problem
        with pytest.raises(InputError, match=expected):
            load_content(Folder(data), read_manifest(Folder(data)), "track", ["audio"])
    # Files of others may have lists of any length that are all as long.
    rewrite(data, "audio", [0, 1], ok.cast(pa.list_(pa.float32())))
    assert problems(data) == []


@pytest.mark.parametrize(
    ("cause", "column", "held"),
    [
        ("expected a number, or a list of numbers, all finite", "text", ["1", "fast"]),
        ("expected lists of one length", "vector", [[1.0], [1.0, 2.0]]),
        ("expected a number, or a list of numbers, all finite", "vector", [[1.0, 2.0], [1.0, float("inf")]]),
        ("has no value; leave it out", "number", pa.array([None, None], pa.float32())),
        ("holds dates; expected numbers, or lists of numbers: cast it, or", "day", pa.array([1, 2], pa.timestamp("s"))),
        ("for none of the ids of the events (column", "other", [1.0, 2.0]),
        ("two different values of the id", "twice", [1.0, 2.0]),
    ],
)
def test_unusable_files_are_rejected(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cause: str, column: str, held: Any
) -> None:
    keys = {"other": [77, 78], "twice": [10, 10]}.get(column, [10, 11])
    pq.write_table(pa.table({"id": keys, column: held}), raw / "bad.parquet")
    files = ["--train", str(raw / "train.parquet"), "--item", "track", "--hold-out-valid", "none"]
    code = main(["prepare", *files, "--content", f"track={raw}/bad.parquet:id:{column}", "--out", str(tmp_path / "o")])
    assert cause in capsys.readouterr().err.strip().splitlines()[-1].removeprefix("crossfade: error: ")
    assert code == 2
    assert not (tmp_path / "o").exists()


def test_content_of_another_length_than_in_the_base_is_rejected(
    raw: Path, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"id": [10], "audio": [[1.0, 2.0, 3.0]]}), raw / "audio.parquet")
    files = ["--train", str(raw / "train.parquet"), "--item", "track", "--base", str(data)]
    code = main(
        ["prepare", *files, "--content", f"track={raw}/audio.parquet:id:audio", "--out", str(tmp_path / "later")]
    )
    error = capsys.readouterr().err.strip().splitlines()[-1].removeprefix("crossfade: error: ")
    assert "in the base dataset" in error
    assert code == 2
