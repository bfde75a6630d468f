"""A step touches the memory of its active rows and no other, not even to look at it."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from touched_pages import ACTIVE, TABLE, forget, step, touched
from waiting import wait_until

from kvstore.local import LocalStore
from kvstore.optimizers import KINDS, OptimizerKind, OptimizerSpec

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux says which pages are touched")

MAX_PAGES = 2 * ACTIVE
"""A row may lie on the border between two pages."""


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_step_in_process(kind: OptimizerKind) -> None:
    gradient = step()
    with closing(LocalStore()) as store:
        store.create([TABLE], OptimizerSpec(kind, weight_decay=0.1), seed=1)
        [held] = store._shards()
        for array in held.arrays.values():
            forget(array)
        store.pull({TABLE.name: gradient.rows_A})
        store.push({TABLE.name: gradient})
        for name, array in held.arrays.items():
            assert 0 < touched(array) <= MAX_PAGES, name
        held.arrays["weights"].max()
        assert touched(held.arrays["weights"]) > 100 * MAX_PAGES  # so it would be, had a step looked at the table


@pytest.mark.slow
def test_of_a_step_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    gradient = step()
    (tmp_path / "track").mkdir()
    # The writer waits for a reader of this pipe, and so the snapshot for the writer.
    os.mkfifo(tmp_path / "track" / "weights.00000-of-00001.npy")
    with closing(LocalStore()) as store:
        store.create([TABLE], OptimizerSpec("sgd"), seed=1)
        store.save(str(tmp_path))
        assert store._snapshot is not None
        [held] = store._snapshot._shards.values()
        wait_until(lambda: held.sent, 10, "the first rows to be sent")
        forget(held.slot_N)
        store.push({TABLE.name: gradient})
        assert 0 < touched(held.slot_N) <= ACTIVE
        assert touched(held.slot_N) < held.slot_N.nbytes // 4096 // 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adam"])
def test_of_an_update_by_a_server(kind: OptimizerKind) -> None:
    script = Path(__file__).resolve().parents[2] / "tests" / "support" / "touched_pages.py"
    done = subprocess.run([sys.executable, script, kind], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert len(counted) == (2 if kind == "rowwise_adagrad" else 4)
    for name, pages in counted.items():
        assert 0 < pages <= MAX_PAGES, name
