"""Checkpoints on S3: they are written through outages, and an error there marks none as corrupt."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from object_store import ObjectStore, free_ports
from saved_shards import (
    Arrays,
    join_shards,
    random_table,
    save_shards,
    split_table,
    wait_for_snapshot,
)
from waiting import wait_until

from crossfade.base.errors import CheckpointError
from crossfade.base.io.folder import Folder
from crossfade.kvstore.checkpoint.checkpoint import Checkpoint, open_checkpoint
from crossfade.kvstore.checkpoint.format import TableShard
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint, prune, step_folder
from crossfade.kvstore.checkpoint.snapshot import Snapshot
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec

pytestmark = pytest.mark.slow

SGD = OptimizerSpec("sgd")
SMALL = TableSpec("small", rows=50, dim=4, init_std=0.1)
LARGE = TableSpec("large", rows=(32 << 20) // 256, dim=64, init_std=0.1)
"""32 MB, so that the upload of each of three shards has several parts."""
HUGE = TableSpec("huge", rows=(64 << 20) // 256, dim=64, init_std=0.1)
"""64 MB, whose upload takes long enough to be interrupted."""


@pytest.fixture
def checkpoints(s3: ObjectStore, tmp_path: Path) -> str:
    return s3.uri(f"checkpoints/{tmp_path.name}")


def zero_shards(table: TableSpec) -> list[TableShard]:
    return split_table(table, {name: np.zeros_like(values) for name, values in random_table(table, SGD).items()}, 2)


def assert_loads(checkpoint: Checkpoint, expected: dict[str, Arrays]) -> None:
    for table in checkpoint.manifest.tables:
        shards = zero_shards(table)
        checkpoint.load(shards)
        np.testing.assert_array_equal(join_shards(shards)["weights"], expected[table.name]["weights"])


def save(checkpoints: str, step: int, *tables: TableSpec) -> dict[str, Arrays]:
    """Write a checkpoint of ``tables``, by default of a small one, in two parts."""
    saved = tables or (SMALL,)
    arrays = {table.name: random_table(table, SGD, seed=step) for table in saved}
    shards = [shard for table in saved for shard in split_table(table, arrays[table.name], 3)]
    save_shards(checkpoints, step, list(saved), SGD, [shards[::2], shards[1::2]])
    return arrays


def test_checkpoints_on_s3_are_written_found_loaded_and_pruned(checkpoints: str) -> None:
    for step, tables in ((1, (SMALL,)), (2, (SMALL, LARGE))):
        arrays = save(checkpoints, step, *tables)
    Folder(checkpoints).child("step-000000003").write("part-00000-of-00001.json", b"{}")
    checkpoint, skipped = latest_checkpoint(checkpoints)
    assert checkpoint is not None
    assert checkpoint.uri == step_folder(checkpoints, 2)
    assert skipped == [
        f"{checkpoints}/step-000000003/manifest.json: missing: this is not a checkpoint, or an incomplete one"
    ]
    assert_loads(checkpoint, arrays)
    np.testing.assert_array_equal(checkpoint.read_rows("large", np.arange(LARGE.rows)), arrays["large"]["weights"])
    prune(checkpoints, 3, 1, lambda _: True)
    # Not by names: this server keeps listing the first as an empty folder.
    assert {path.partition("/")[0] for path in Folder(checkpoints).sizes()} == {"step-000000002", "step-000000003"}
    assert_loads(open_checkpoint(checkpoint.uri), arrays)


def test_wrong_secret_fails_at_once_and_does_not_mark_a_checkpoint_corrupt(
    checkpoints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    shards = split_table(SMALL, random_table(SMALL, SGD), 1)
    before = shards[0].arrays["weights"].copy()
    with pytest.raises(CheckpointError, match=r"step-000000002: could not be written: .*SignatureDoesNotMatch"):
        wait_for_snapshot(Snapshot(step_folder(checkpoints, 2), 0, 1, shards))
    np.testing.assert_array_equal(shards[0].arrays["weights"], before)
    for read in (latest_checkpoint, lambda uri: open_checkpoint(step_folder(uri, 1))):
        with pytest.raises(CheckpointError, match=r"cannot be read: .*SignatureDoesNotMatch") as caught:
            read(checkpoints)
        assert caught.value.checkpoint is None


def test_save_survives_an_s3_outage(s3: ObjectStore, checkpoints: str) -> None:
    folder = Folder(step_folder(checkpoints, 1))
    shards = [*split_table(SMALL, random_table(SMALL, SGD), 1), *split_table(HUGE, random_table(HUGE, SGD), 1)]
    before = [shard.arrays["weights"].copy() for shard in shards]
    with closing(Snapshot(folder.uri, 0, 1, shards)) as snapshot:
        wait_until(lambda: folder.names() == ["small"], "the first file")
        s3.stop()
        assert snapshot.poll() is None
        s3.start()
        wait_for_snapshot(snapshot)
    for shard, expected in zip(shards, before, strict=True):
        np.testing.assert_array_equal(shard.arrays["weights"], expected)
        path = f"{shard.table}/weights.00000-of-00001.npy"
        assert folder.read(path, 1 << 30)[128:] == expected.tobytes()


def test_lasting_s3_outage_is_an_error_and_keeps_the_tables(
    s3: ObjectStore, checkpoints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1)
    monkeypatch.setenv("CROSSFADE_S3_ATTEMPTS", "4")
    checkpoint = open_checkpoint(step_folder(checkpoints, 1))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    shards = split_table(LARGE, random_table(LARGE, SGD), 1)
    before = shards[0].arrays["weights"].copy()
    with pytest.raises(CheckpointError, match=r"step-000000002: could not be written: .*NETWORK_CONNECTION"):
        wait_for_snapshot(Snapshot(step_folder(checkpoints, 2), 0, 1, shards))
    np.testing.assert_array_equal(shards[0].arrays["weights"], before)
    s3.stop()
    try:
        with pytest.raises(CheckpointError, match=r"weights.00000-of-00003.npy: cannot be read: ") as caught:
            checkpoint.load(zero_shards(SMALL))
    finally:
        s3.start()
    assert caught.value.checkpoint is None
