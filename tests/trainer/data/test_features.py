"""Features and content of prepared data: read from files of users, carried on, checked and forgotten."""

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
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.data.features import iter_content, load_content, load_feature
from crossfade.trainer.data.manifest import Feature, read_manifest
from crossfade.trainer.data.parquet import file_entry
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.model.towers import load_towers
from crossfade.trainer.prepare.options import ValidateOptions
from crossfade.trainer.prepare.summary import format_summary
from crossfade.trainer.prepare.validate import validate
from crossfade.trainer.runs.job_inputs import load_inputs

pytestmark = pytest.mark.slow

# Track 14 is in test alone, 15 is only skipped, so neither is liked in train; 99 is in no event.
EVENTS = [("ann", 10), ("ann", 11), ("bob", 10), ("bob", 12), ("cid", 13), ("cid", 10)]
TAGS = {10: ["rock", "live"], 11: ["live"], 13: ["jazz"], 14: ["rock", "rock"], 99: ["unheard"]}
COUNTRIES = {"ann": "AT", "bob": "BE", "cid": "AT"}
AUDIO = {10: [1.0, 2.0], 11: [-3.0, 0.5], 12: None, 14: [0.0, 4.0], 99: [5.0, 5.0]}
TEMPO = {10: 90.0, 11: 120.0, 12: float("nan"), 13: 150.0, 14: None}

Row = tuple[Any, ...]
JOB = {"name": "j", "model": {"dim": 4, "item_features": ["track", "tag"]}}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare events with features and content: lists of any and of fixed size, rows that share an ID, text."""
    folder = tmp_path_factory.mktemp("prepared") / "raw"
    folder.mkdir()
    skipped = [*EVENTS, ("ann", 15)]
    weights = [1.0] * len(EVENTS) + [-1.0]
    customers, tracks = zip(*skipped, strict=True)
    pq.write_table(pa.table({"customer": customers, "track": tracks, "w": weights}), folder / "train.parquet")
    (folder / "test.csv").write_text("customer,track,w\nann,14,1\nbob,13,1\n")
    pq.write_table(pa.table({"id": list(TAGS), "tags": list(TAGS.values())}), folder / "tags.parquet")
    (folder / "artists.tsv").write_text("id\tartist\n10\t7\n11\t8\n12\t\n13\t8\n14\t7\n15\t9\n")
    (folder / "countries.csv").write_text("who,country\n" + "".join(f"{who},{at}\n" for who, at in COUNTRIES.items()))
    audio = pa.array(list(AUDIO.values()), pa.list_(pa.float64(), 2))
    pq.write_table(pa.table({"id": list(AUDIO), "audio": audio}), folder / "audio.parquet")
    pq.write_table(pa.table({"id": list(TEMPO), "tempo": list(TEMPO.values())}), folder / "tempo.parquet")
    (folder / "text.csv").write_text('id,year,text\n10,1990,"[0.5, 1]"\n11,,"[2, -1]"\n13,2010,\n')
    prepare(folder, folder.parent / "data", *attributes(folder))
    return folder.parent


@pytest.fixture
def raw(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared / "raw", tmp_path / "raw"))


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared / "data", tmp_path / "data"))


def prepare(raw: Path, out: Path, *options: str, train: str = "train.parquet") -> Path:
    files = ["--train", str(raw / train), "--test", str(raw / "test.csv"), "--weight", "w", "--item", "track"]
    assert main(["prepare", *files, *options, "--out", str(out)]) == 0
    return out


def attributes(raw: Path) -> list[str]:
    return [
        *("--features", f"track={raw}/tags.parquet:id:tag=tags"),
        *("--features", f"track={raw}/artists.tsv:id:artist"),
        *("--features", f"customer={raw}/countries.csv:who:country"),
        *("--content", f"track={raw}/audio.parquet:id:audio"),
        *("--content", f"track={raw}/tempo.parquet:id:speed=tempo"),
        *("--content", f"track={raw}/text.csv:id:year,text"),
    ]


def vocabulary(data: Path, entity: str) -> list[Row]:
    manifest = read_manifest(Folder(data))
    columns = ["id", "count", *(["name"] if manifest.entities[entity].has_names else [])]
    columns_read = Vocabulary(Folder(data), manifest, entity).read(0, manifest.entities[entity].rows, columns)
    return [tuple(row.values()) for row in columns_read.to_pylist()]


def values(data: Path, entity: str, name: str) -> dict[Any, list[Any]]:
    """Return the values of each ID that has some."""
    lists = load_feature(Folder(data), read_manifest(Folder(data)), entity, name)
    values_by_id = {}
    for row, (own_id, *_) in enumerate(vocabulary(data, entity)):
        rows = lists.take(np.array([row])).values_N
        if len(rows):
            values_by_id[own_id] = sorted(vocabulary(data, name)[value][0] for value in rows)
    return values_by_id


def content(data: Path, name: str) -> dict[Any, list[float]]:
    """Return the stored content of each track that has some."""
    row_ids = [own_id for own_id, *_ in vocabulary(data, "track")]
    return {
        row_ids[row]: value.tolist()
        for _, row_N, value_ND in iter_content(Folder(data), read_manifest(Folder(data)), "track", name)
        for row, value in zip(row_N, value_ND, strict=True)
    }


def problems(data: Path) -> Sequence[str]:
    return validate(ValidateOptions.of(data=data), NullReporter()).problems.listed


def test_lists_and_repeated_rows_become_values_of_one_row(data: Path) -> None:
    assert values(data, "track", "tag") == {10: ["live", "rock"], 11: ["live"], 13: ["jazz"], 14: ["rock"]}
    assert values(data, "track", "artist") == {10: [7], 11: [8], 13: [8], 14: [7], 15: [9]}
    assert values(data, "customer", "country") == {who: [at] for who, at in COUNTRIES.items()}
    summary = format_summary(read_manifest(Folder(data)), Folder(data))
    assert "a feature of track: 5 values, of 4 of its 6 rows; 1 id without an event ignored" in summary
    # They are counted by interactions of train.
    assert vocabulary(data, "tag") == [("live", 4), ("rock", 3), ("jazz", 1)]
    assert vocabulary(data, "artist") == [(7, 3), (8, 2), (9, 0)]
    assert vocabulary(data, "country") == [("AT", 4), ("BE", 2)]
    assert problems(data) == []


def test_content_is_joined_by_id_and_missing_values_are_left_out(data: Path) -> None:
    assert content(data, "audio") == {10: [1.0, 2.0], 11: [-3.0, 0.5], 14: [0.0, 4.0]}
    assert content(data, "speed") == {10: [90.0], 11: [120.0], 13: [150.0]}
    assert content(data, "year") == {10: [1990.0], 13: [2010.0]}
    assert content(data, "text") == {10: [0.5, 1.0], 11: [2.0, -1.0]}
    summary = format_summary(read_manifest(Folder(data)), Folder(data))
    assert "content audio: 2 numbers, in 3 of 6 rows; 1 id without an event ignored" in summary


def test_scaling_is_that_of_the_manifest_and_missing_content_is_masked(data: Path) -> None:
    manifest = read_manifest(Folder(data))
    speed, audio = (manifest.content["track"][name] for name in ("speed", "audio"))
    assert (speed.mean, speed.std) == pytest.approx((120.0, np.std([90, 120, 150])))
    flat = np.array([1, 2, -3, 0.5, 0, 4])
    assert (audio.mean, audio.std) == (0.0, pytest.approx(np.sqrt(np.mean(flat**2))))
    found = load_content(Folder(data), manifest, "track", ["audio", "speed"])
    row = {track: row for row, (track, *_) in enumerate(vocabulary(data, "track"))}
    np.testing.assert_allclose(found.values_RF[row[11]], [-3 / audio.std, 0.5 / audio.std, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.values_RF[row[13]], [0, 0, 1, 30 / speed.std, 0], atol=1e-6)
    np.testing.assert_array_equal(found.values_RF[row[12]], [0, 0, 1, 0, 1])
    assert found.filled_R[[row[track] for track in (10, 11, 12, 13, 14)]].tolist() == [True, True, False, True, True]


def test_threads_and_row_groups_do_not_change_the_scaling(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(1).normal(1e3, 7, 5000)
    pq.write_table(pa.table({"id": np.arange(5000), "tempo": draw}), raw / "tempo.parquet", row_group_size=100)
    found = set()
    for number, (threads, batch_rows) in enumerate((("1", 1 << 14), ("2", 100))):
        monkeypatch.setattr("crossfade.trainer.prepare.attribute_columns._BATCH_ROWS", batch_rows)
        options = ["--content", f"track={raw}/tempo.parquet:id:tempo", "--catalog", "track", "--threads", threads]
        found.add((prepare(raw, tmp_path / f"data{number}", *options) / "manifest.json").read_bytes())
    assert len(found) == 1
    column = read_manifest(Folder(tmp_path / "data0")).content["track"]["tempo"]
    assert (column.mean, column.std) == pytest.approx((draw.mean(), draw.std()), rel=1e-5)


@pytest.mark.parametrize("ids", ["auto", "string"])
def test_catalog_gives_rows_to_ids_without_events(raw: Path, tmp_path: Path, ids: str) -> None:
    kind = {"auto": int, "string": str}[ids]
    data = prepare(raw, tmp_path / "out", *attributes(raw), "--catalog", "track", "--id-type", ids)
    assert [row[0] for row in vocabulary(data, "track")][-3:] == [kind(number) for number in (14, 15, 99)]
    assert (values(data, "track", "tag")[kind(99)], content(data, "audio")[kind(99)]) == (["unheard"], [5.0, 5.0])
    assert problems(data) == []
    # The day after, it has its first plays, in the row that it has already.
    (raw / "day2.csv").write_text("customer,track,w\nann,99,1\n")
    (raw / "new.csv").write_text("id,tag\n98,live\n98,rock\n")
    options = ["--base", str(data), "--features", f"track={raw}/new.csv:id:tag", "--catalog", "track"]
    second = prepare(raw, tmp_path / "second", *options, "--id-type", ids, train="day2.csv")
    expected = [(own_id, int(own_id == kind(99))) for own_id, _ in vocabulary(data, "track")]
    assert vocabulary(second, "track") == [*expected, (kind(98), 0)]
    assert problems(second) == []


def test_extending_keeps_rows_and_replaces_values_of_rows_with_new_ones(raw: Path, data: Path, tmp_path: Path) -> None:
    (raw / "day2.csv").write_text("customer,track,w\nann,11,1\ndot,16,1\ndot,10,1\n")
    (raw / "new.csv").write_text("id,tag\n16,live\n16,drone\n11,drone\n")
    pq.write_table(pa.table({"id": [11, 12], "tempo": [200.0, 220.0]}), raw / "new.parquet")
    new = ["--features", f"track={raw}/new.csv:id:tag", "--content", f"track={raw}/new.parquet:id:speed=tempo"]
    options = ["--base", str(data), *new]
    second = prepare(raw, tmp_path / "second", *options, train="day2.csv")
    assert [row[0] for row in vocabulary(second, "tag")] == ["live", "rock", "jazz", "drone"]
    expected = {10: ["live", "rock"], 11: ["drone"], 13: ["jazz"], 14: ["rock"], 16: ["drone", "live"]}
    assert values(second, "track", "tag") == expected
    assert values(second, "track", "artist") == values(data, "track", "artist")
    assert values(second, "customer", "country") == values(data, "customer", "country")
    assert vocabulary(second, "country") == [("AT", 1), ("BE", 0)]
    assert content(second, "speed") == {10: [90.0], 11: [200.0], 12: [220.0], 13: [150.0]}
    assert content(second, "audio") == content(data, "audio")
    scaling = [
        {name: (column.mean, column.std) for name, column in read_manifest(Folder(each)).content["track"].items()}
        for each in (data, second)
    ]
    assert scaling[0] == scaling[1]
    assert problems(second) == []
    # Tracks with earlier positives may have been trained on earlier days; 14 and 15 never were.
    manifest = read_manifest(Folder(second))
    warm_R = Vocabulary(Folder(second), manifest, "track").total_counts() > 0
    own_ids = np.array([own_id for own_id, _ in vocabulary(second, "track")])
    assert set(own_ids[~warm_R]) == {14, 15}
    third = prepare(raw, tmp_path / "third", "--base", str(second), train="day2.csv")
    count_R = Vocabulary(Folder(third), read_manifest(Folder(third)), "track").total_counts()
    assert (count_R > 0).tolist() == warm_R.tolist()
    loaded = {}
    for start_from in (None, "runs/first/checkpoints"):
        job = check_job({**JOB, "data": {"path": str(second)}, "checkpoint": {"warm_start_from": start_from}}, "test")
        inputs = load_inputs(job)
        towers = load_towers(inputs.job, inputs.model, inputs.folder, inputs.manifest)
        feature_tables = towers.of("track")
        assert feature_tables is not None
        loaded[start_from] = feature_tables.warm_R.tolist()
    assert loaded["runs/first/checkpoints"] == warm_R.tolist()
    assert loaded[None] == [count > 0 for _, count in vocabulary(second, "track")] != warm_R.tolist()


def test_forgotten_ids_lose_their_attributes_and_unshared_values(
    raw: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "gone.txt").write_text("bob\n")
    assert main(["forget", str(data), "--ids", str(raw / "gone.txt")]) == 0
    assert values(data, "customer", "country") == {"ann": ["AT"], "cid": ["AT"]}
    assert vocabulary(data, "country") == [("AT", 4), (None, 0)]
    assert read_manifest(Folder(data)).entities["country"].vacant_rows == [1]
    assert vocabulary(data, "tag") == [("live", 3), ("rock", 2), ("jazz", 1)]
    assert problems(data) == []
    assert not any(b"BE" in path.read_bytes() for path in (data / "vocabulary" / "country").iterdir())
    (raw / "gone.txt").write_text("11\n")
    assert main(["forget", str(data), "--entity", "track", "--ids", str(raw / "gone.txt")]) == 0
    assert content(data, "audio") == {10: [1.0, 2.0], 14: [0.0, 4.0]}
    assert content(data, "speed") == {10: [90.0], 13: [150.0]}
    assert problems(data) == []
    assert len(list((data / "content/track/audio").iterdir())) == 1
    capsys.readouterr()
    assert main(["forget", str(data), "--ids", str(raw / "gone.txt"), "--entity", "tag"]) == 2
    assert "has no ids of 'tag' to forget" in capsys.readouterr().err.removeprefix("crossfade: error: ").strip()


def rewritten(data: Path, name: str, change: Any) -> None:
    """Change the pairs of a feature of tracks, and its entry in the manifest."""
    (path,) = (data / "features" / "track" / name).iterdir()
    pairs = pq.read_table(path).to_pydict()
    change(pairs)
    pq.write_table(pa.table(pairs), path)
    manifest = read_manifest(Folder(data))
    feature = Feature(files=[file_entry(Folder(data), path.relative_to(data).as_posix())])
    features = {**manifest.features, "track": {**manifest.features["track"], name: feature}}
    manifest.model_copy(update={"features": features}).write(Folder(data))


def swap(pairs: dict[str, list[int]]) -> None:
    for column in pairs.values():
        column[0], column[-1] = column[-1], column[0]


CHANGES: dict[str, Any] = {
    "with rows 0 to": lambda pairs: pairs["row"].__setitem__(-1, 77),
    "and values 0 to": lambda pairs: pairs["value"].__setitem__(0, -3),
    "expected pairs sorted by row": swap,
    "column 'value'": lambda pairs: pairs["value"].__setitem__(0, None),
}


@pytest.mark.parametrize("what", CHANGES)
def test_invalid_pairs_are_reported_by_validate_and_rejected_by_training(data: Path, what: str) -> None:
    rewritten(data, "tag", CHANGES[what])
    reported = problems(data)
    assert len(reported) == 1
    assert what in reported[0]
    with pytest.raises(InputError, match=r"features/track/tag/part-00000.parquet, row( group)? 0"):
        load_feature(Folder(data), read_manifest(Folder(data)), "track", "tag")


def test_values_are_strings_if_one_file_has_strings(raw: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [10], "v": [1]}), raw / "v-1.parquet")
    pq.write_table(pa.table({"id": [11], "v": ["x"]}), raw / "v-2.parquet")
    files = ["--train", str(raw / "train.parquet"), "--item", "track", "--out", str(tmp_path / "out")]
    words = ["prepare", *files, "--features", f"track={raw}/v-*.parquet:id:v"]
    assert main(words) == 0
    assert values(tmp_path / "out", "track", "v") == {10: ["1"], 11: ["x"]}


def rewrite_content(data: Path, name: str, rows: Any, lists: Any) -> None:
    """Replace the only file of a column, and its entry in the manifest."""
    manifest = read_manifest(Folder(data))
    column = manifest.content["track"][name]
    pq.write_table(pa.table({"row": pa.array(rows, pa.int64()), "value": lists}), data / column.files[0].path)
    files = [file_entry(Folder(data), column.files[0].path)]
    content = {"track": {**manifest.content["track"], name: column.model_copy(update={"files": files})}}
    manifest.model_copy(update={"content": content}).write(Folder(data))


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
        rewrite_content(data, "audio", rows, lists)
        [problem] = problems(data)
        assert expected in problem
        assert "content/track/audio/" in problem
        with pytest.raises(InputError, match=expected):
            load_content(Folder(data), read_manifest(Folder(data)), "track", ["audio"])
    # Files of others may have lists of any length that are all as long.
    rewrite_content(data, "audio", [0, 1], ok.cast(pa.list_(pa.float32())))
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
        ("in the base dataset", "audio", [[1.0, 2.0, 3.0]] * 2),
    ],
)
def test_unusable_files_of_content_are_rejected(
    raw: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cause: str, column: str, held: Any
) -> None:
    keys = {"other": [77, 78], "twice": [10, 10]}.get(column, [10, 11])
    pq.write_table(pa.table({"id": keys, column: held}), raw / "bad.parquet")
    files = ["--train", str(raw / "train.parquet"), "--item", "track", "--hold-out-valid", "none"]
    files += ["--base", str(data)] if column == "audio" else []
    code = main(["prepare", *files, "--content", f"track={raw}/bad.parquet:id:{column}", "--out", str(tmp_path / "o")])
    assert cause in capsys.readouterr().err.strip().splitlines()[-1].removeprefix("crossfade: error: ")
    assert code == 2
    assert not (tmp_path / "o").exists()
