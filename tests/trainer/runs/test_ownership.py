"""A checkpoint folder has one owner: a run, and the command that runs it."""

from pathlib import Path

import pytest

from crossfade.base.errors import InputError
from crossfade.trainer.runs.ownership import check_still_owned, claim


def test_command_whose_run_was_resumed_elsewhere_no_longer_owns_the_checkpoints(tmp_path: Path) -> None:
    claim(str(tmp_path), "run", "plays", "first", take_over=False)
    check_still_owned(str(tmp_path), "run", "first")
    claim(str(tmp_path), "run", "plays", "second", take_over=True)
    check_still_owned(str(tmp_path), "run", "second")
    check_still_owned(str(tmp_path), "run")  # a role that was started by hand
    with pytest.raises(InputError, match="another command, with resume or standby, has taken the run over"):
        check_still_owned(str(tmp_path), "run", "first")
    with pytest.raises(InputError, match="another run, of job 'plays', was started in it"):
        check_still_owned(str(tmp_path), "another", "second")
