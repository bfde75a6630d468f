"""How a job fits its instance type: rejected devices, and the notes that ``crossfade submit`` prints."""

from typing import Any

import pytest

from crossfade.base.errors import InputError
from crossfade.deploy.aws.accelerators import check_device, notes, sizes_on_instances
from crossfade.deploy.topology import sizes_on_hosts
from crossfade.trainer.config.schema import JobConfig


def job_of(train: dict[str, Any], **sections: Any) -> JobConfig:
    return JobConfig.model_validate({"name": "plays", "data": {"path": "s3://music/plays"}, "train": train, **sections})


def notes_of(train: dict[str, Any], instance_type: str) -> str:
    return " ".join(notes(job_of(train), instance_type, hosts=1))


@pytest.mark.parametrize("device", ["gpu", "gpu:1", ["gpu:0", "gpu:1"]])
def test_named_gpu_on_an_instance_without_one_is_rejected(device: Any) -> None:
    job = job_of({"device": device})
    check_device(job, "ml.g5.12xlarge")
    with pytest.raises(InputError, match=r"^train\.device is gpu.*, but ml\.m5\.large has no GPU; choose another"):
        check_device(job, "ml.m5.large")


def test_device_that_every_instance_has_is_accepted() -> None:
    check_device(job_of({"device": "auto"}), "ml.m5.large")


@pytest.mark.parametrize(
    ("train", "idle"),
    [
        ({}, None),
        ({"device": "gpu"}, None),
        ({"engine": "mxnet"}, None),
        ({"device": "cpu"}, "train.device is cpu"),
        ({"engine": "torch", "device": ["cpu", "cpu"]}, "train.device is cpu"),
        ({"engine": "cpu"}, "train.engine is cpu"),
    ],
)
def test_idle_gpu_is_reported_where_the_job_computes_on_the_cpu(train: dict[str, Any], idle: str | None) -> None:
    found = notes_of(train, "ml.g5.xlarge")
    assert found.startswith("ml.g5.xlarge has a GPU (A10G) that") == (idle is not None)
    assert (idle or "") in found
    assert notes_of(train, "ml.m5.large") == ""


@pytest.mark.parametrize(
    ("instance_type", "successor"),
    [
        ("p2.xlarge", "g4dn.xlarge, with the GPU T4"),
        ("ml.p2.8xlarge", "ml.g4dn.xlarge, with the GPU T4"),
        ("ml.p3.2xlarge", "ml.g5.xlarge, with the GPU A10G"),
    ],
)
def test_family_that_aws_retires_is_reported_with_its_successor(instance_type: str, successor: str) -> None:
    found = notes_of({}, instance_type)
    assert found.startswith("AWS is retiring p")
    assert f"{instance_type} may not be available" in found
    assert found.endswith(successor)


@pytest.mark.parametrize(
    ("cluster", "sizes"),
    [
        ({}, {"servers": 0, "workers": 3}),
        ({"servers": 0}, {"servers": 0, "workers": 3}),
        ({"workers": 6}, {}),
        ({"store": "sharded", "workers": 2}, {}),
    ],
)
def test_workers_hold_the_tables_on_arm(cluster: dict[str, Any], sizes: dict[str, int]) -> None:
    assert sizes_on_instances(job_of({}, cluster=cluster).cluster, "r7g.large", 3) == sizes


@pytest.mark.parametrize(
    ("cluster", "found", "fix"),
    [
        ({"store": "mxnet"}, "cluster.store is mxnet", "cluster.servers to 0 and cluster.workers to 3"),
        ({"servers": 2}, "the job has 2 servers", "cluster.servers to 0 and cluster.workers to 3"),
        ({"servers": 1, "workers": 2}, "the job has 1 server", "cluster.servers to 0"),
        ({"workers": 1}, "the job has 3 servers", "cluster.servers to 0 and cluster.workers to 3"),
    ],
)
def test_job_that_needs_servers_is_rejected_on_arm_with_the_way_out(
    cluster: dict[str, Any], found: str, fix: str
) -> None:
    given = job_of({}, cluster=cluster).cluster
    with pytest.raises(InputError) as caught:
        sizes_on_instances(given, "r7g.large", 3)
    assert str(caught.value).startswith(f"{found}, but r7g.large has an Arm processor (Graviton), for which")
    assert f"let the workers hold the tables (set cluster.store to sharded, {fix}), or choose" in str(caught.value)
    assert sizes_on_instances(given, "r6i.large", 3) == sizes_on_hosts(given, 3)


def test_dense_layers_of_several_workers_need_an_image_with_horovod() -> None:
    dense = job_of({}, model={"dim": 8, "dense": {"item": [8]}})
    assert list(notes(dense, "r6i.large", hosts=1)) == []
    assert list(notes(dense, "r7g.large", hosts=2)) == []
    [note] = notes(dense, "r6i.large", hosts=2)
    assert "built with HOROVOD=" in note
    for cluster in ({"store": "sharded"}, {"workers": 4}, {"servers": 2, "workers": 1}):
        alone = job_of({}, model={"dim": 8, "dense": {"item": [8]}}, cluster=cluster)
        assert list(notes(alone, "r6i.large", hosts=2)) == [], cluster
