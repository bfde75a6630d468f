"""Manifests by which Kubernetes runs a job: a Job for the coordinator, a StatefulSet of servers, a Job of workers.

    files = kubernetes_files(job, size_hosts(job, plan), SchedulerFiles(image="registry/crossfade:cpu"))

They are laid out for Kustomize: ``base`` and an overlay as an example. Each server and worker is an agent that accepts
one kind of role. An agent that returns gets its role again, whatever its address, so no pod needs to keep its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from crossfade.base.errors import InputError, option_named
from crossfade.deploy.schedulers.options import SchedulerFiles
from crossfade.deploy.schedulers.pods import (
    METRICS_PORT,
    PORT,
    RUNS_FOLDER,
    Manifest,
    PodMaker,
    claim,
    metadata,
    shares_volume,
)
from crossfade.deploy.schedulers.sizes import HostSize, requested_gpus
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig

JOB_FILE = "job.yaml"
_MAX_NAME = 40
_RETRIES = 20
"""Pods of a Job that may fail; those that were stopped or evicted do not count."""
_PERMANENT = [1, 2]
"""Exit codes that are the job's result: it failed after its restarts, or its input is invalid."""
_STOPPED = [143]
"""The exit code of a job that was stopped, as when the coordinator is evicted: its agents end as well."""


def on_kubernetes(job: JobConfig) -> JobConfig:
    """Return ``job`` as the pods run it: each role in its own pod, which adds its address, on fixed ports.

    Raises:
        InputError: it is no valid job.
    """
    values = job.model_dump(mode="json")
    values["cluster"] |= {
        "hosts": 1,
        "one_role_per_host": bool(job.cluster.servers),
        "coordinator_address": None,
        "host": "127.0.0.1",
        "scheduler_port": 0,
    }
    values["metrics"] |= {"port": METRICS_PORT, "host": None}
    return check_job(values, "the job on Kubernetes")


def check_storage(job: JobConfig) -> None:
    """Check that pods can read what ``job`` names: on S3, or in the folder where the volume is mounted.

    Raises:
        InputError: a path is of this machine.
    """
    paths = {
        "data.path": (job.data.path, f", or name where the pods find the dataset with {option_named('data')}"),
        "checkpoint.path": (job.checkpoint.path, ""),
        **{key: (source, "") for key, source in job.starting_points().items()},
    }
    for key, (path, how) in paths.items():
        if path is not None and not path.startswith(("s3://", f"{RUNS_FOLDER}/")):
            raise InputError(
                f"{key}: {path} is a path of this machine, which pods cannot read; expected s3://BUCKET/PREFIX or a "
                f"path below {RUNS_FOLDER}, where the volume is mounted: set {key}{how}"
            )


def kubernetes_files(job: JobConfig, sizes: Sequence[HostSize], options: SchedulerFiles) -> dict[str, str]:
    """Return the text of each file, by path; ``job`` is one that ``on_kubernetes`` returned.

    Raises:
        InputError: the job names paths that pods cannot read.
    """
    check_storage(job)
    base = _base(job, sizes, options)
    kustomization: Manifest = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        **({"namespace": options.namespace} if options.namespace else {}),
        "resources": list(base),
    }
    files = {f"base/{name}": manifests for name, manifests in base.items()}
    files["base/kustomization.yaml"] = [kustomization]
    files["overlays/example/kustomization.yaml"] = [_overlay(job, options)]
    return {path: _to_yaml(manifests) for path, manifests in files.items()}


def resource_name(job: JobConfig) -> str:
    """Return the name that all resources of ``job`` begin with: a DNS label."""
    return re.sub(r"[^a-z0-9]+", "-", job.name.lower())[:_MAX_NAME].strip("-")


def _base(job: JobConfig, sizes: Sequence[HostSize], options: SchedulerFiles) -> dict[str, list[Manifest]]:
    name = resource_name(job)
    pods = PodMaker(
        name,
        job,
        _image(options, job),
        service_account=options.service_account or name,
        secret=options.secret,
        claim=options.claim or f"{name}-runs",
    )
    files: dict[str, list[Manifest]] = {
        "job.yaml": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": metadata(name, "job"),
                "data": {JOB_FILE: job.to_yaml()},
            }
        ]
    }
    if options.service_account is None:
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(name)}
        files["service-account.yaml"] = [{**account, "automountServiceAccountToken": False}]
    if options.claim is None:
        files["volume.yaml"] = [claim(name, options.storage, shared=shares_volume(job))]
    files["coordinator.yaml"] = [_job(name, "coordinator", pods.coordinator(sizes[0]), 1)]
    if job.cluster.servers:
        servers = job.cluster.servers
        files["coordinator.yaml"].insert(0, _service(name, "coordinator", headless=False))
        files["servers.yaml"] = [
            _service(name, "server", headless=True),
            _stateful_set(name, pods.agent("server", sizes[1]), servers),
        ]
        worker = pods.agent("worker", _largest(sizes[1 + servers :]))
        files["workers.yaml"] = [_job(name, "worker", worker, job.cluster.workers)]
        files["network-policy.yaml"] = [_network_policy(name)]
    return files


def _image(options: SchedulerFiles, job: JobConfig) -> str:
    """Return the image; by default the variant that has the engine of ``job``, for a GPU if the job requests one."""
    if options.image is not None:
        return options.image
    gpus = requested_gpus(job)
    if job.train.engine == "torch" or (gpus and job.train.engine == "auto"):
        return "crossfade:torch"
    return "crossfade:cu112" if gpus else "crossfade:cpu"


def _largest(sizes: Sequence[HostSize]) -> HostSize:
    """Return the size that holds each of ``sizes``: all pods of a Job are alike."""
    return HostSize(max(size.cpus for size in sizes), max(size.memory_mib for size in sizes))


def _service(name: str, component: str, *, headless: bool) -> Manifest:
    """Return a service for agents, which may try before the coordinator is ready and while it is stopping."""
    ports = [{"name": "metrics", "port": METRICS_PORT, "targetPort": "metrics"}]
    if component == "coordinator":
        ports.insert(0, {"name": "join", "port": PORT, "targetPort": "join"})
    labels = metadata(name, component)["labels"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(name, component),
        "spec": {
            **({"clusterIP": "None"} if headless else {}),
            "publishNotReadyAddresses": True,
            "selector": labels,
            "ports": ports,
        },
    }


def _stateful_set(name: str, template: Manifest, replicas: int) -> Manifest:
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(name, "server"),
        "spec": {
            "replicas": replicas,
            "serviceName": f"{name}-server",
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": metadata(name, "server")["labels"]},
            "template": template,
        },
    }


def _job(name: str, component: str, template: Manifest, completions: int) -> Manifest:
    """Return a Job that replaces pods, but for those whose exit code is the result of the training."""
    template["spec"]["restartPolicy"] = "Never"
    rules = [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": _PERMANENT}},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": _STOPPED}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(name, component),
        "spec": {
            "completionMode": "Indexed",
            "completions": completions,
            "parallelism": completions,
            "backoffLimit": _RETRIES,
            "podFailurePolicy": {"rules": rules},
            "template": template,
        },
    }


def _network_policy(name: str) -> Manifest:
    """Return a policy that lets pods of the job reach each other, and others only their metrics.

    MXNet's listeners, on ports that the kernel assigns, serve everybody who reaches them.
    """
    job = metadata(name)["labels"]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(name),
        "spec": {
            "podSelector": {"matchLabels": job},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": job}}]},
                {"ports": [{"protocol": "TCP", "port": METRICS_PORT}]},
            ],
        },
    }


def _overlay(job: JobConfig, options: SchedulerFiles) -> Manifest:
    """Return an overlay that shows what differs between clusters: registry, AWS role, storage class, kind of node."""
    name, image = resource_name(job), re.sub(r"[:@][^/]*$", "", _image(options, job))
    patches = []
    if options.service_account is None:
        role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/crossfade"}
        patches.append(_patch("ServiceAccount", name, "/metadata/annotations", role))
    if options.claim is None:
        storage_class = "efs-sc" if shares_volume(job) else "gp3"
        patches.append(_patch("PersistentVolumeClaim", f"{name}-runs", "/spec/storageClassName", storage_class))
    component = "worker" if job.cluster.servers else "coordinator"
    node = {"node.kubernetes.io/instance-type": "r6i.4xlarge"}
    patches.append(_patch("Job", f"{name}-{component}", "/spec/template/spec/nodeSelector", node))
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../../base"],
        "images": [{"name": image, "newName": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/crossfade"}],
        "patches": patches,
    }


def _patch(kind: str, name: str, path: str, value: Any) -> Manifest:
    operations = [{"op": "add", "path": path, "value": value}]
    return {"target": {"kind": kind, "name": name}, "patch": yaml.safe_dump(operations, sort_keys=False)}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and no references to earlier values."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _to_yaml(manifests: Sequence[Manifest]) -> str:
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
