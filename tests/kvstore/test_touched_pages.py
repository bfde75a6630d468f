"""A step touches the memory of its active rows and no other, not even to read it."""

import sys
from contextlib import closing
from pathlib import Path

import pytest
from needs import LINUX
from snapshots import gated_pieces
from touched_pages import ACTIVE_ROWS, TABLE, make_step, release_pages, touched_pages

from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import KINDS, OptimizerKind, OptimizerSpec

pytestmark = [pytest.mark.skipif(not sys.platform.startswith("linux"), reason=LINUX), pytest.mark.slow]

MAX_PAGES = 2 * ACTIVE_ROWS
"""A row may straddle two pages."""


@pytest.mark.parametrize("kind", KINDS)
def test_local_step_touches_pages_of_active_rows_only(kind: OptimizerKind) -> None:
    gradient = make_step()
    with closing(LocalStore()) as store:
        store.create([TABLE], OptimizerSpec(kind, weight_decay=0.1), seed=1)
        [shard] = store.shards()
        for array in shard.arrays.values():
            release_pages(array)
        store.pull({TABLE.name: gradient.rows_A})
        store.push({TABLE.name: gradient})
        for name, array in shard.arrays.items():
            assert 0 < touched_pages(array) <= MAX_PAGES, name
        shard.arrays["weights"].max()
        assert touched_pages(shard.arrays["weights"]) > 100 * MAX_PAGES  # as a scan of the table would


def test_local_step_during_a_save_touches_pages_of_active_rows_only(tmp_path: Path) -> None:
    gradient = make_step()
    with closing(LocalStore()) as store:
        store.create([TABLE], OptimizerSpec("sgd"), seed=1)
        with gated_pieces() as gate:
            gate.close()
            store.save(str(tmp_path))
            assert store._snapshot is not None
            [shard] = store._snapshot._shards.values()
            release_pages(shard.slot_N)
            store.push({TABLE.name: gradient})
            assert 0 < touched_pages(shard.slot_N) <= ACTIVE_ROWS
            assert touched_pages(shard.slot_N) < shard.slot_N.nbytes // 4096 // 4
