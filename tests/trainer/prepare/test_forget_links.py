"""Forgetting in a dataset whose files are elsewhere, behind links: data there would remain, so nothing is changed."""

from pathlib import Path

import pytest
from cluster_data import write_planted

from crossfade.cli.main import main


def tree(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("linked", ["train", "train/part-00001.parquet", "vocabulary"])
def test_files_behind_links_are_rejected_before_anything_changes(
    tmp_path: Path, linked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, elsewhere = write_planted(tmp_path / "data"), tmp_path / "elsewhere"
    (data / linked).rename(elsewhere)
    (data / linked).symlink_to(elsewhere)
    (tmp_path / "forget.txt").write_text("c007\n")
    before = tree(elsewhere), tree(data)
    assert main(["forget", str(data), "--ids", str(tmp_path / "forget.txt")]) == 2
    message = capsys.readouterr().err.splitlines()[-1].removeprefix("crossfade: error: ")
    assert str(data / linked) in message
    assert "where nothing is deleted" in message
    assert f"a link leads to {elsewhere}" in message
    assert (tree(elsewhere), tree(data)) == before


def test_linked_folder_itself_may_be_named(tmp_path: Path) -> None:
    data = write_planted(tmp_path / "data")
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "forget.txt").write_text("c007\n")
    before = tree(data)
    assert main(["forget", str(tmp_path / "link"), "--ids", str(tmp_path / "forget.txt")]) == 0
    assert tree(data) != before
