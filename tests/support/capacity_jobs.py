"""Jobs whose capacity tests plan."""

from pathlib import Path
from typing import Any

from cluster_data import write_job

from crossfade.deploy.capacity.plan import CapacityPlan, plan_capacity
from crossfade.deploy.capacity.plan_inputs import read_inputs
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.schema import JobConfig


def zipf_job(folder: Path, data: Path, **sections: Any) -> JobConfig:
    train = {"batch_size": 1000, "epochs": 1, **sections.pop("train", {})}
    return load_job(write_job(folder / "job.yaml", data, train=train, **sections))


def plan_of(job: JobConfig) -> CapacityPlan:
    return plan_capacity(read_inputs(job))
