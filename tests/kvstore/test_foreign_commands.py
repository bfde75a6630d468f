"""Commands that a real server receives from others than the workers of its job."""

import json
import pickle
from contextlib import closing
from pathlib import Path

import drive_commands
import numpy as np
import pytest
from dist_roles import SECRET, running_roles

from crossfade.kvstore.local import LocalStore


@pytest.mark.cluster
def test_foreign_tampered_and_replayed_commands_change_nothing(tmp_path: Path) -> None:
    with running_roles("drive_commands.py", tmp_path, servers=1, workers=1, folder=tmp_path) as roles:
        assert set(roles.exit_codes().values()) == {0}, roles.logs()
        log = next(role for role in roles.all if role.name == "server-0").log.read_text()
    table = drive_commands.TABLE
    with closing(LocalStore()) as store:
        store.create([table], drive_commands.OPTIMIZER, drive_commands.SEED)
        for step, factor in enumerate(drive_commands.FACTORS):
            store.set_lr_factor(factor)
            store.push({table.name: drive_commands.gradient(step)})
        expected = store.pull({table.name: np.arange(table.rows, dtype=np.int64)})[table.name]
    assert np.load(tmp_path / "pulled.npy").tobytes() == expected.tobytes()
    assert len(json.loads((tmp_path / "ignored.json").read_text())) > 40
    assert not (tmp_path / "stolen").exists()
    unpickled = tmp_path / "unpickled"
    assert not unpickled.exists()
    pickle.loads(drive_commands.pickled(unpickled).encode("ascii"))
    assert unpickled.exists()  # loading it does create the file
    assert "ignored a command that no worker of this job has sent: its message authentication code is not" in log
    assert "ignored a command that no worker of this job has sent: it repeats a command that was executed" in log
    assert SECRET not in log
