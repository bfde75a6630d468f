"""Warnings about batches: larger than the data, or with few in-batch negatives."""

from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here

from crossfade.trainer.training.session import warn_odd_batches


@pytest.mark.parametrize(
    ("batch_size", "rows", "partitions", "negatives", "expected"),
    [
        (100, 100, 1, "shared", []),
        (101, 100, 1, "shared", ["train.batch_size is 101, but train has 100 interactions"]),
        (1616, 10_000, 16, "in_batch", []),
        (1615, 10_000, 16, "in_batch", ["an example has about 99"]),
        (1600, 10_000, 16, "mixed", []),
        (50, 10_000, 1, "in_batch", ["an example has about 49", "in 1 partition)"]),
        (100, 3, 4, "in_batch", ["train has 3 interactions", "an example has about 0"]),
    ],
)
def test_warning_depends_on_batch_rows_partitions_and_negatives(
    caplog: pytest.LogCaptureFixture, batch_size: int, rows: int, partitions: int, negatives: str, expected: list[str]
) -> None:
    warn_odd_batches(batch_size, rows, partitions, negatives)
    assert len(caplog.messages) == len([text for text in expected if "1 partition" not in text])
    for text in expected:
        assert text in "\n".join(caplog.messages)


@pytest.mark.slow
def test_training_warns_before_the_first_step(tmp_path: Path) -> None:
    data = write_planted(tmp_path / "data", train_files=[[64]], held_out=False)
    sections = {"loss": "softmax", "negatives": {"kind": "in_batch"}, "train": {"batch_size": 65, "epochs": 1}}
    write_job(tmp_path / "job.yaml", data, **sections)
    result = crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("train.batch_size is 65, but train has 64 interactions") == 1
    assert result.stderr.count("in-batch negatives: an example has about 63") == 1
