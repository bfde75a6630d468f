"""Jobs whose files for Slurm and Kubernetes tests write, and manifests that tests read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from cluster_data import write_job

from crossfade.deploy.capacity.plan import CapacityPlan, plan_capacity
from crossfade.deploy.capacity.plan_inputs import read_inputs
from crossfade.deploy.schedulers.kubernetes import kubernetes_files, on_kubernetes
from crossfade.deploy.schedulers.options import SchedulerFiles
from crossfade.deploy.schedulers.sizes import size_hosts
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.schema import JobConfig

BUCKET_DATA = "s3://music/plays"


def planned(job: JobConfig) -> CapacityPlan:
    return plan_capacity(read_inputs(job))


def scheduled_job(folder: Path, data: Path, **sections: Any) -> JobConfig:
    """Return a job on two servers and three workers, as far as ``sections`` set nothing else."""
    cluster = {"servers": 2, "workers": 3, **sections.pop("cluster", {})}
    return load_job(write_job(folder / "job.yaml", data, cluster=cluster, **sections))


def moved(job: JobConfig, path: str) -> JobConfig:
    """Return ``job`` with its dataset at ``path``."""
    return job.model_copy(update={"data": job.data.model_copy(update={"path": path})})


def kubernetes_of(job: JobConfig, options: SchedulerFiles, data: str = BUCKET_DATA) -> tuple[JobConfig, dict[str, str]]:
    """Return ``job`` as the pods run it, with its dataset at ``data``, and the files."""
    job = on_kubernetes(job)
    sizes = size_hosts(job, planned(job))
    return moved(job, data), kubernetes_files(moved(job, data), sizes, options)


def manifests(files: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield all manifests of ``base`` but the kustomization."""
    for path, text in files.items():
        if path.startswith("base/") and not path.endswith("kustomization.yaml"):
            yield from yaml.safe_load_all(text)


def find(files: dict[str, str], kind: str, name: str) -> dict[str, Any]:
    """Return the manifest of this kind and name."""
    [found] = [each for each in manifests(files) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found
