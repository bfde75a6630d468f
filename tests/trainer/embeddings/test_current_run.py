"""A folder that names its current run stands for that run."""

from pathlib import Path

import pytest

from crossfade.base.errors import InputError
from crossfade.trainer.embeddings.current_run import current_run


def test_folder_without_a_current_run_is_itself(tmp_path: Path) -> None:
    for location in (tmp_path, tmp_path / "missing"):
        assert current_run(str(location)) == (str(location), None, None)


def test_folder_stands_for_the_run_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "current.json").write_text('{"version": 12, "run": "version-000012"}')
    assert current_run(str(tmp_path)) == (str(tmp_path / "version-000012"), None, 12)
    (tmp_path / "current.json").write_text('{"version": 12, "run": "version-000012", "data": "data"}')
    assert current_run(str(tmp_path)).data == str(tmp_path / "data")


@pytest.mark.parametrize("text", ["", "{}", '{"version": 0, "run": "a"}', '{"version": 1, "run": "a/b"}', "[1]"])
def test_damaged_name_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "current.json").write_text(text)
    with pytest.raises(InputError, match=r"current\.json: does not name a run: .*; restore it"):
        current_run(str(tmp_path))
