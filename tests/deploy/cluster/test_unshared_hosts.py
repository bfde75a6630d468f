"""Hosts without a shared folder: what the coordinator sends, and what they must share."""

from pathlib import Path

import pytest

from crossfade.base.errors import InputError
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.runs.run_folder import RunFolder


def test_host_accepts_only_role_files_from_another(tmp_path: Path) -> None:
    job = check_job({"name": "x", "data": {"path": "s3://bucket/data"}}, "a test")
    with RunFolder(tmp_path / "one").open_run(job):
        files = RunFolder(tmp_path / "one").files_for_roles()
    assert set(files) == {"job.yaml", "run.json"}
    other = RunFolder(tmp_path / "two")
    other.write_role_files({**files, "../stray": "x", "events.jsonl": "x"})
    assert other.job() == job
    assert other.run_id() == RunFolder(tmp_path / "one").run_id()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        ["job.yaml", "run.json", "run.lock", "job.yaml", "run.json"]
    )


def test_hosts_without_shared_folder_must_share_s3() -> None:
    cluster = {"servers": 2, "workers": 2, "hosts": 2, "coordinator_address": "10.0.0.1:7070", "shared_run_dir": False}
    values = {"name": "x", "data": {"path": "s3://bucket/data"}, "cluster": cluster}
    with pytest.raises(InputError, match=r"set checkpoint\.path to a URI such as s3://"):
        check_job(values, "a test")
    assert check_job({**values, "checkpoint": {"path": "s3://bucket/here"}}, "a test").no_shared_run_dir
