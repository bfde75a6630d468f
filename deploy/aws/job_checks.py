"""How a job fits its instance type: what is rejected, and notes to print before anything that costs money starts.

check_device(job, "ml.m5.xlarge")       # InputError if train.device is gpu
for line in notes(job, "ml.p2.xlarge", hosts=1):
    print(line)
"""

from __future__ import annotations

from collections.abc import Iterator

from crossfade.base.errors import InputError, option_named
from crossfade.deploy.aws.accelerators import gpu_of
from crossfade.trainer.config.devices import on_gpu
from crossfade.trainer.config.schema import JobConfig

_SUCCESSORS = {
    "p2": "g4dn.xlarge",
    "g3": "g4dn.xlarge",
    "g3s": "g4dn.xlarge",
    "p3": "g5.xlarge",
    "p3dn": "g5.xlarge",
}
"""By family that AWS is retiring (docs/aws.md has the sources), the nearest type that it is not."""


def check_device(job: JobConfig, instance_type: str) -> None:
    """Check that the job can run on this instance type, and that this has a GPU if the job names one.

    Raises:
        InputError: it cannot, or has none.
    """
    gpu = gpu_of(instance_type)
    if on_gpu(job.train.devices) and gpu is None:
        raise InputError(
            f"train.device is {', '.join(job.train.devices)}, but {instance_type} has no GPU; choose another "
            f"{option_named('instance_type')}, such as g5.xlarge, or add {option_named('set', 'train.device=auto')}"
        )


def notes(job: JobConfig, instance_type: str, hosts: int) -> Iterator[str]:
    """Yield what the user should read about ``job`` on ``hosts`` instances of this type."""
    for note in (_retirement(instance_type), _idle_gpu(job, instance_type), _horovod(job, hosts)):
        if note is not None:
            yield note


def _retirement(instance_type: str) -> str | None:
    family = instance_type.removeprefix("ml.").partition(".")[0]
    if family not in _SUCCESSORS:
        return None
    successor = ("ml." if instance_type.startswith("ml.") else "") + _SUCCESSORS[family]
    gpu = gpu_of(successor)
    assert gpu is not None
    return (
        f"AWS is retiring {family} (docs/aws.md), so {instance_type} may not be available; the nearest type that stays "
        f"is {successor}, with the GPU {gpu.name}"
    )


def _idle_gpu(job: JobConfig, instance_type: str) -> str | None:
    """Return a note if the instances have GPUs that the job does not use."""
    gpu, train = gpu_of(instance_type), job.train
    if gpu is None or (train.engine != "cpu" and train.devices[0] != "cpu"):
        return None
    key = "train.engine" if train.engine == "cpu" else "train.device"
    return (
        f"{instance_type} has a GPU ({gpu.name}) that the job does not use: {key} is cpu; an instance without one, "
        f"such as m5.xlarge, costs less ({key}=auto uses the GPU)"
    )


def _horovod(job: JobConfig, hosts: int) -> str | None:
    """Return a note if the job all-reduces the gradients of dense layers, for which its image needs Horovod.

    Each of ``hosts`` runs a worker, or more if ``cluster.workers`` is larger.
    """
    if max(hosts, job.cluster.workers) == 1 or not job.model.has_dense_layers:
        return None
    return (
        "dense layers (model.dense) of several workers need Horovod: use an image that was built with --build-arg "
        "HOROVOD=1 (docs/docker.md)"
    )
