"""Every value of a dataset manifest is checked before it sizes anything; training and validation reject alike."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.vocabulary import check_vocabularies


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_planted(tmp_path / "data", train_files=((500, 17), (40,)))


def error_of(data: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """Return the line about the manifest after ``change``, without its beginning and the hint at its end."""
    manifest = json.loads((data / "manifest.json").read_text())
    change(manifest)
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError) as caught:
        read_manifest(Folder(data))
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
    begin, end = (
        f"{data}/manifest.json: not a manifest of prepared data: ",
        "; prepare the data again into another folder",
    )
    assert message.startswith(begin)
    assert message.endswith(end)
    return message.removeprefix(begin).removesuffix(end)


@pytest.mark.parametrize(
    "path",
    ["..", "a/../b", "/a", "a//b", "", "a/", "C:/a", "a\\b", "a\x00", "a\x1b[2J", "x" * 256, "a/" * 600 + "b"],
    ids=lambda path: repr(path[:10]),
)
def test_path_that_leads_outside_or_cannot_be_a_path_is_rejected(data: Path, path: str) -> None:
    problem = error_of(data, lambda manifest: manifest["splits"]["train"]["files"][0].update(path=path))
    assert "splits.train.files.0.path: " in problem


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", "ü", "weight", "Timestamp", "x" * 101, "a\x00", "-a"])
def test_entity_with_another_name_is_rejected(data: Path, name: str) -> None:
    problem = error_of(data, lambda manifest: manifest["entities"].update({name: manifest["entities"]["track"]}))
    assert "cannot be the name of an entity; expected a word of at most 100 ASCII letters" in problem


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m["splits"]["train"]["files"].append(m["splits"]["test"]["files"][0]), "is listed more than once"),
        (lambda m: m["entities"]["track"].update(rows=10**12), "has 1,000,000,000,000 rows, but its files have 200"),
        (lambda m: m["entities"]["track"].update(rows=2**63), "entities.track.rows: input should be less than"),
        (lambda m: m["entities"]["track"].update(rows=True), "entities.track.rows: input should be a valid integer"),
        (lambda m: m["entities"]["track"].update(rows="200"), "entities.track.rows: input should be a valid integer"),
        (lambda m: m["splits"]["train"]["files"][0].update(row_groups=[2**62, 2**62]), "64-bit integers"),
        (lambda m: m["splits"]["train"]["files"][0].update(bytes=-1), "bytes: input should be greater than"),
        (lambda m: m.update(item="customer"), "query and item are both 'customer'"),
        (lambda m: m["entities"]["track"].update(vacant_rows=[2, 0]), "vacant_rows"),
        (lambda m: m["source"].update(x=float("nan")), "NaN is not a number of JSON"),
        (lambda m: m.update(version=1), "has format version 1, but version 4 is required"),
    ],
)
def test_value_that_contradicts_another_is_rejected(
    data: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    assert problem in error_of(data, change)


def test_manifest_that_is_a_fifo_or_huge_is_not_read(data: Path) -> None:
    path = data / "manifest.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError) as caught:
        read_manifest(Folder(data))
    assert "not a regular file" in str(caught.value)
    path.unlink()
    path.symlink_to(__file__)
    with pytest.raises(InputError, match="a link leads out") as caught:
        read_manifest(Folder(data))
    assert "cannot be read: a link leads out of the folder" in str(caught.value)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError) as caught:
        read_manifest(Folder(data))
    assert "cannot be read: it has" in str(caught.value)


@pytest.mark.slow
def test_training_refuses_before_it_starts_what_validation_refuses(data: Path) -> None:
    job = write_job(data.parent / "job.yaml", data)
    file = data / "vocabulary" / "customer" / "part-00001.parquet"
    content = file.read_bytes()
    for break_it in (file.unlink, lambda: file.write_bytes(content[:-1]), lambda: os.mkfifo(file)):
        break_it()
        trained, validated = crossfade_here("train", job, cwd=data.parent), crossfade_here("validate", data)
        assert (trained.returncode, validated.returncode) == (2, 2)
        line = trained.stderr.splitlines()[-1].removeprefix("crossfade: error: ")
        assert line.startswith(str(file))
        # Validation lists problems without the hint, which follows once after all of them.
        assert line.removesuffix("; prepare the data again") in validated.stderr.splitlines()
        assert not (data.parent / "runs").exists()
        file.unlink(missing_ok=True)
    file.write_bytes(content)
    check_vocabularies(Folder(data), read_manifest(Folder(data)))


@pytest.mark.parametrize("context", [["hour"], ["track"], ["genre", "genre"]])
def test_context_that_is_no_further_entity_is_rejected(data: Path, context: list[str]) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["entities"]["genre"] = {**manifest["entities"]["track"], "files": [], "rows": 1}
        manifest["context"] = context

    message = error_of(data, change)
    assert f"context: '{context[-1]}' must be another entity than query, item and features, once" in message
