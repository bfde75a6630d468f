"""Increments that take over the files of their base: readers see what they see of vocabularies written whole."""

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from preparing import checksums, prepare_files, random_events, vocabulary, write_parquet, write_text

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest, Overlay, read_manifest
from crossfade.trainer.data.parquet import file_entry
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.vocabulary import KeptVocabulary, Vocabulary
from crossfade.trainer.prepare import extend
from crossfade.trainer.prepare.compact import compact
from crossfade.trainer.prepare.forget import forget_in_lineage
from crossfade.trainer.prepare.option_values import NamesFile
from crossfade.trainer.prepare.options import CompactOptions, ValidateOptions
from crossfade.trainer.prepare.validate import validate

pytestmark = pytest.mark.slow

DAYS = ("day1", "day2", "day3", "day4")


def prepare_days(folder: Path, *, days: int = 4, with_names: bool = True, **options: Any) -> Path:
    """Prepare ``days`` days, each on the one before, of which the last ones have few of the IDs; return ``folder``."""
    names = write_text(folder / "names.csv", "id,name\n" + "".join(f"{id},Song {id}\n" for id in range(1000, 1050)))
    for number, name in enumerate(DAYS[:days]):
        events = random_events(1500 if number == 0 else 25, seed=number)
        # Each day has a new customer, and a new track that is held out, not warm, and first counted on the next day.
        columns = {
            "customer": [*events["customer"], *[f"new{number}"] * 4],
            "item": [*events["item"], 2000 + number, 1001, 3000 + number, 2999 + number],
            "when": [*events["when"], 50, 50, 99, 50],
        }
        raw = write_parquet(folder / f"{name}.parquet", **columns)
        given = {"names": {"item": NamesFile(names, "id", "name")}} if with_names and number == 0 else {}
        base = {"base": folder / DAYS[number - 1]} if number else {}
        prepare_files(
            folder / name, raw, timestamp="when", hold_out_valid="none", hold_out_test="after:60", **base, **given,
            **options, **({"replay": 1} if number else {}),
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Prepare the same days twice: with whole vocabularies, and with the files of the days before and overlays."""
    whole, increments = prepare_days(tmp_path_factory.mktemp("whole")), tmp_path_factory.mktemp("increments")
    with pytest.MonkeyPatch.context() as patch:
        take_over_always(patch)
        return [whole, prepare_days(increments)]


@pytest.fixture
def chains(prepared: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    take_over_always(monkeypatch)
    before = [checksums(folder) for folder in prepared]
    # Linked, as the files of bases are: what writes into a file instead of replacing it changes ``prepared``, too.
    yield [Path(shutil.copytree(folder, tmp_path / folder.name, copy_function=os.link)) for folder in prepared]
    assert [checksums(folder) for folder in prepared] == before


def take_over_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extend, "CARRIED_FROM_ROWS", 0)
    monkeypatch.setattr(extend, "_OVERLAY_SHARE", 0)


def columns(data: Path, entity: str) -> dict[str, Any]:
    manifest = read_manifest(Folder(data))
    described = manifest.entities[entity]
    names = ["row", "id", "count", *(["warm"] if described.has_warm else []), *(["name"] * described.has_names)]
    whole = Vocabulary(Folder(data), manifest, entity).read(0, described.rows, names)
    # The other ways to read it.
    reader, row_N = Vocabulary(Folder(data), manifest, entity), np.arange(0, described.rows, 3)
    assert pa.concat_tables(reader.iter_tables(names), promote_options="default").to_pylist() == whole.to_pylist()
    assert reader.take(row_N, names).to_pylist() == whole.take(row_N).to_pylist()
    assert (
        KeptVocabulary(Folder(data), manifest, entity).read(0, described.rows, names).to_pylist() == whole.to_pylist()
    )
    assert reader.counts().tolist() == whole.column("count").to_pylist()
    count_R = np.array(whole.column("count").to_pylist())
    assert reader.most_frequent() == (int(count_R.argmax()), int(count_R.max()))
    return whole.to_pydict() | {"warm_rows": reader.warm_rows().tolist()}


def problems(data: Path) -> list[str]:
    return validate(ValidateOptions.of(data=data), NullReporter()).problems.listed


def overlay(data: Path, entity: str = "customer") -> Overlay | None:
    return read_manifest(Folder(data)).entities[entity].overlay


def assert_same(whole: Path, increments: Path) -> None:
    """Check that both hold the same, whatever their files."""
    for entity in ("customer", "item"):
        assert columns(increments, entity) == columns(whole, entity)
    splits = [
        {path: sum for path, sum in checksums(data).items() if not path.startswith(("vocabulary", "overlay"))}
        for data in (whole, increments)
    ]
    assert splits[1] == splits[0]
    facts = [{**read_manifest(Folder(data)).source, "train": None, "base": None} for data in (whole, increments)]
    assert facts[1] == facts[0]
    assert problems(increments) == problems(whole) == []


def test_every_reader_sees_what_it_sees_of_whole_vocabularies(prepared: list[Path]) -> None:
    whole, increments = prepared
    for name in DAYS:
        assert_same(whole / name, increments / name)
    for earlier, later in pairwise(DAYS[1:]):
        old, new = (read_manifest(Folder(increments / name)).entities["customer"] for name in (earlier, later))
        assert new.overlay is not None
        assert new.overlay.carried == len(old.files) == len(new.files) - 1
        for before, after in zip(old.files, new.carried, strict=True):
            assert (increments / earlier / before.path).samefile(increments / later / after.path)
    assert overlay(whole / "day4") is None


def test_increment_and_its_compaction_are_those_of_whole_vocabularies(chains: list[Path]) -> None:
    for folder in chains:
        compact(CompactOptions.of(data=folder / "day4", out=folder / "compact"))
    assert checksums(chains[1] / "compact") == checksums(chains[0] / "compact")
    assert overlay(chains[1] / "compact") is None


def test_increment_is_complete_without_its_base(chains: list[Path]) -> None:
    before = columns(chains[1] / "day3", "item")
    for name in ("day1", "day2"):
        shutil.rmtree(chains[1] / name)
    assert columns(chains[1] / "day3", "item") == before
    assert problems(chains[1] / "day3") == []


def test_forgotten_ids_leave_every_file_of_a_chain(chains: list[Path]) -> None:
    ids = ["c1", "c7", "new2", "new3"]
    for folder in chains:
        forget_in_lineage(Folder(folder / "day4"), pa.array(ids), "customer", NullReporter())
    for name in DAYS:
        for entity in ("customer", "item"):
            assert columns(chains[1] / name, entity) == columns(chains[0] / name, entity)
        assert problems(chains[1] / name) == []
        assert not set(ids) & {row["id"] for row in vocabulary(chains[1] / name, "customer")}
    # Vacant rows stay vacant in the datasets that extend it.
    raw = write_parquet(chains[0] / "day5.parquet", customer=["c1", "c2"], item=[1001, 1002], when=[60, 61])
    for folder in chains:
        prepare_files(folder / "day5", raw, timestamp="when", hold_out_valid="none", base=folder / "day4", replay=2)
    assert_same(chains[0] / "day5", chains[1] / "day5")


def test_admission_and_expiry_extend_an_increment(chains: list[Path]) -> None:
    raw = write_parquet(chains[0] / "day5.parquet", customer=["c1", "c2", "x"], item=[1001, 1002, 9], when=[70, 70, 70])
    for options in ({"admit": {"item": 2}}, {"expire_after": {"customer": 15}}):
        for folder in chains:
            prepare_files(
                folder / "day5", raw, timestamp="when", hold_out_valid="none", base=folder / "day4", overwrite=True,
                **options,
            )  # fmt: skip
        assert_same(chains[0] / "day5", chains[1] / "day5")
    assert overlay(chains[1] / "day5", "item") is not None
    assert overlay(chains[1] / "day5", "customer") is None


def test_small_and_much_changed_and_often_extended_vocabularies_are_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_days(tmp_path, days=2, with_names=False)
    assert overlay(tmp_path / "day2") is None
    monkeypatch.setattr(extend, "CARRIED_FROM_ROWS", 0)
    prepare_days(tmp_path, days=3, with_names=False, overwrite=True)
    assert overlay(tmp_path / "day2") is None  # 20 of 62 customers
    assert overlay(tmp_path / "day2", "item") is not None  # 22 of 102 items
    assert overlay(tmp_path / "day3", "item") is None
    take_over_always(monkeypatch)
    monkeypatch.setattr(extend, "_MAX_FILES", 2)
    prepare_days(tmp_path, with_names=False, overwrite=True)
    assert [overlay(tmp_path / name) is not None for name in DAYS] == [False, True, False, True]


def damage(data: Path, rows: list[int], counts: list[int]) -> DatasetManifest:
    """Replace the overlay of the customers."""
    manifest = read_manifest(Folder(data))
    entity = manifest.entities["customer"]
    path = write_parquet(data / "overlay/customer/other.parquet", row=rows, count=counts).relative_to(data)
    changed = Overlay(carried=1, files=[file_entry(Folder(data), str(path))])
    entities = {**manifest.entities, "customer": entity.model_copy(update={"overlay": changed})}
    manifest.model_copy(update={"entities": entities}).write(Folder(data))
    return read_manifest(Folder(data))


def test_damaged_overlay_is_rejected(chains: list[Path]) -> None:
    data = chains[1] / "day2"
    for rows, counts in (([0, 62], [1, 1]), ([-1, 5], [1, 1]), ([5, 5], [1, 1]), ([4, 5], [1, -1])):
        manifest = damage(data, rows, counts)
        with pytest.raises(InputError) as error:
            Vocabulary(Folder(data), manifest, "customer").counts()
        assert "holds rows or counts that cannot be" in str(error.value)
        assert "overlay/customer: holds rows or counts that cannot be" in problems(data)[0]
    damage(data, [0], [1000])
    assert "the count is 1000, but train has" in problems(data)[0]


def test_writing_a_file_that_was_taken_over_leaves_that_of_the_base(tmp_path: Path) -> None:
    base, out = Folder(tmp_path / "base"), Folder(tmp_path / "out")
    base.write("a", b"before")
    out.take_over("b", base, "a")
    assert (tmp_path / "base/a").samefile(tmp_path / "out/b")
    with out.open_output("b") as file:
        file.write(b"after")
    assert (base.read("a"), out.read("b")) == (b"before", b"after")
