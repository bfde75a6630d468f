"""``crossfade.Job`` trains job files, in process and on servers."""

from pathlib import Path

import pytest
from cluster_data import write_planted

import crossfade

pytestmark = pytest.mark.slow

VALUES = {"name": "planted", "train": {"epochs": 1, "batch_size": 512}, "metrics": {"port": None}}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> crossfade.Job:
    data = tmp_path_factory.mktemp("job") / "data"
    write_planted(data)
    return crossfade.Job({**VALUES, "data": {"path": str(data)}}, {"model.dim": 8})


def test_trains_and_resumes(job: crossfade.Job, tmp_path: Path) -> None:
    model = job.train(run_dir=tmp_path / "run")
    assert model.report is not None
    assert model.report["epochs"] == 1
    longer = job.with_settings({"train.epochs": 2}).train(run_dir=tmp_path / "run", resume=True)
    assert longer.report is not None
    assert longer.report["epochs"] == 2
    assert longer.array().shape[1] == 8


def test_file_and_settings_make_the_same_job(job: crossfade.Job, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(job.to_yaml())
    other = crossfade.Job.from_yaml(tmp_path / "job.yaml", {"train.epochs": 7, "train.max_steps": None})
    assert other.config.train.epochs == 7
    assert other.with_settings({"train.epochs": 1}).config == job.config
    assert repr(other).startswith("Job('planted', data=")


def test_unknown_key_is_an_input_error(job: crossfade.Job) -> None:
    with pytest.raises(crossfade.InputError, match=r"unknown key 'train.epoch'; did you mean 'epochs'"):
        job.with_settings({"train.epoch": 1})


@pytest.mark.cluster
def test_trains_on_servers(job: crossfade.Job, tmp_path: Path) -> None:
    alone = job.train(run_dir=tmp_path / "alone")
    model = job.train(servers=1, workers=1, run_dir=tmp_path / "run")
    assert (model.array() == alone.array()).all()
