"""Manifests by which Kubernetes runs a job: a Job for the coordinator, a StatefulSet of servers, a Job of workers.

Where the workers hold the tables, there are no servers.

    files = kubernetes_files(job, size_hosts(job, plan), SchedulerFiles(image="registry/crossfade:cpu"))

They are laid out for Kustomize: ``base`` and an overlay as an example. Each server and worker is an agent that accepts
one kind of role. An agent that returns gets its role again, whatever its address, so no pod needs to keep its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from crossfade.base.errors import InputError, option_named
from crossfade.base.machine import THREAD_VARIABLES
from crossfade.deploy.cluster.coordinator import EXIT_TIMEOUT_SECONDS
from crossfade.deploy.schedulers.options import SchedulerFiles
from crossfade.deploy.schedulers.sizes import HostSize, requested_gpus
from crossfade.deploy.topology import TOKEN_VARIABLE, UNPLACED
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig

PORT, METRICS_PORT = 7070, 9400
RUNS_FOLDER, JOB_FOLDER = "/runs", "/job"
TOKEN_KEY = "token"  # noqa: S105 - the key in the secret
START_SECONDS = 1800
"""Time for a pod to answer, which the coordinator does once it has read the dataset's manifest and row counts."""
_USER = 10001
"""The image's user crossfade (docker/Dockerfile)."""
_PROBE_SECONDS = 10
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "runAsGroup": _USER,
    "fsGroup": _USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}

Manifest = dict[str, Any]


def metadata(name: str, component: str | None = None) -> Manifest:
    """Return the metadata of a resource of the job ``name``, or of its ``component``."""
    labels = {"app.kubernetes.io/name": "crossfade", "app.kubernetes.io/instance": name}
    if component is not None:
        labels["app.kubernetes.io/component"] = component
    return {"name": f"{name}-{component}" if component else name, "labels": labels}


def _manifest(api: str, kind: str, name: str, component: str | None = None, **more: Any) -> Manifest:
    return {"apiVersion": api, "kind": kind, "metadata": metadata(name, component), **more}


def shares_volume(job: JobConfig) -> bool:
    """Return whether all pods of ``job`` mount the volume; with other shared storage, only the coordinator does."""
    return job.cluster.is_distributed and job.cluster.shared_run_dir


def claim(name: str, storage: str, *, shared: bool) -> Manifest:
    """Return a claim for the volume of runs: of all pods if they share it, else of the coordinator."""
    mode = "ReadWriteMany" if shared else "ReadWriteOnce"
    spec = {"accessModes": [mode], "resources": {"requests": {"storage": storage}}}
    return _manifest("v1", "PersistentVolumeClaim", name, "runs", spec=spec)


@dataclass(frozen=True)
class PodMaker:
    """Makes the pod templates of the job ``name``; ``service_account``, ``secret`` and ``claim`` are names."""

    name: str
    job: JobConfig
    image: str
    service_account: str
    secret: str | None
    claim: str

    @property
    def _run_dir(self) -> str:
        return f"{RUNS_FOLDER}/{self.job.name}"

    @property
    def _linger_seconds(self) -> int:
        """Seconds that an agent follows the coordinator after SIGTERM, so that pods stopped together can save."""
        return math.ceil(self.job.cluster.grace_period_seconds + EXIT_TIMEOUT_SECONDS)

    def coordinator(self, size: HostSize) -> Manifest:
        """Return the pod of ``crossfade train``, which also runs MXNet's scheduler if there are servers, or trains.

        On a volume that pods share, a pod that was lost may hold the run's lock for a while after its replacement has
        started, which then waits.
        """
        distributed = self.job.cluster.is_distributed
        arguments = [
            *("train", f"{JOB_FOLDER}/job.yaml", f"--run-dir={self._run_dir}"),
            *(
                "--standby" if shares_volume(self.job) else "--resume",
                "--progress=lines",
                "--set=cluster.host=$(POD_IP)",
            ),
        ]
        container = self._container("coordinator", arguments, size)
        if distributed:
            arguments.append(f"--set=cluster.coordinator_address=$(POD_IP):{PORT}")
            container["ports"].insert(0, {"name": "join", "containerPort": PORT})
            container["readinessProbe"] = {"tcpSocket": {"port": "join"}, "periodSeconds": _PROBE_SECONDS}
        container["volumeMounts"].append({"name": "job", "mountPath": JOB_FOLDER, "readOnly": True})
        volumes = [self._volume(on_claim=True), {"name": "job", "configMap": {"name": f"{self.name}-job"}}]
        return self._template("coordinator", container, volumes, trains=not distributed)

    def agent(self, role: Literal["server", "worker"], size: HostSize) -> Manifest:
        """Return the pod of an agent that accepts one ``role``."""
        arguments = [
            *("agent", f"--join={self.name}-coordinator:{PORT}", f"--run-dir={self._run_dir}", f"--roles={role}"),
            *("--advertise-address=$(POD_IP)", f"--metrics-port={METRICS_PORT}"),
            f"--grace-period={self._linger_seconds}",
        ]
        container = self._container(role, arguments, size)
        return self._template(
            role, container, [self._volume(on_claim=shares_volume(self.job))], trains=role == "worker"
        )

    def _container(self, role: str, arguments: list[str], size: HostSize) -> Manifest:
        health = {"httpGet": {"path": "/healthz", "port": "metrics"}, "periodSeconds": _PROBE_SECONDS}
        memory = f"{size.memory_mib}Mi"
        return {
            "name": role,
            "image": self.image,
            "args": arguments,
            "env": [*self._variables(), *({"name": name, "value": str(size.threads)} for name in THREAD_VARIABLES)],
            **({"envFrom": [{"secretRef": {"name": self.secret}}]} if self.secret else {}),
            "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
            "resources": {"requests": {"cpu": f"{size.cpus:g}", "memory": memory}, "limits": {"memory": memory}},
            "startupProbe": {**health, "timeoutSeconds": 5, "failureThreshold": START_SECONDS // _PROBE_SECONDS},
            "livenessProbe": {**health, "timeoutSeconds": 5, "failureThreshold": 6},
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [{"name": "runs", "mountPath": RUNS_FOLDER}],
            "securityContext": CONTAINER_SECURITY,
        }

    def _variables(self) -> list[Manifest]:
        """Return the variables for the pod's address and, with agents, the token by which they authenticate."""
        address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
        if not self.job.cluster.is_distributed:
            return [address]
        token = {"secretKeyRef": {"name": f"{self.name}-token", "key": TOKEN_KEY}}
        return [address, {"name": TOKEN_VARIABLE, "valueFrom": token}]

    def _volume(self, *, on_claim: bool) -> Manifest:
        kind = {"persistentVolumeClaim": {"claimName": self.claim}} if on_claim else {"emptyDir": {}}
        return {"name": "runs", **kind}

    def _template(self, role: str, container: Manifest, volumes: list[Manifest], *, trains: bool) -> Manifest:
        if trains and (gpus := requested_gpus(self.job)):
            container["resources"]["limits"]["nvidia.com/gpu"] = gpus
        return {
            "metadata": {"labels": metadata(self.name, role)["labels"]},
            "spec": {
                "serviceAccountName": self.service_account,
                "automountServiceAccountToken": False,
                # An agent looks the coordinator up before each heartbeat, which must not take longer than its lease.
                "dnsConfig": {"options": [{"name": "timeout", "value": "1"}, {"name": "attempts", "value": "1"}]},
                "terminationGracePeriodSeconds": self._linger_seconds + math.ceil(EXIT_TIMEOUT_SECONDS),
                "securityContext": POD_SECURITY,
                "containers": [container],
                "volumes": volumes,
            },
        }


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
    values["cluster"] |= {**UNPLACED, "hosts": 1, "one_role_per_host": job.cluster.is_distributed}
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
    return {path: to_yaml(manifests) for path, manifests in files.items()}


def resource_name(job: JobConfig) -> str:
    """Return the name that all resources of ``job`` begin with: a DNS label."""
    return re.sub(r"[^a-z0-9]+", "-", job.name.lower())[:_MAX_NAME].strip("-")


def _base(job: JobConfig, sizes: Sequence[HostSize], options: SchedulerFiles) -> dict[str, list[Manifest]]:
    name = resource_name(job)
    pods = PodMaker(
        name,
        job,
        image_of(options, job),
        service_account=options.service_account or name,
        secret=options.secret,
        claim=options.claim or f"{name}-runs",
    )
    files = {"job.yaml": [_manifest("v1", "ConfigMap", name, "job", data={JOB_FILE: job.to_yaml()})]}
    if options.service_account is None:
        files["service-account.yaml"] = [_manifest("v1", "ServiceAccount", name, automountServiceAccountToken=False)]
    if options.claim is None:
        files["volume.yaml"] = [claim(name, options.storage, shared=shares_volume(job))]
    files["coordinator.yaml"] = [_job(name, "coordinator", pods.coordinator(sizes[0]), 1)]
    if job.cluster.is_distributed:
        servers = job.cluster.servers
        files["coordinator.yaml"].insert(0, _service(name, "coordinator", headless=False))
        if servers:
            files["servers.yaml"] = [
                _service(name, "server", headless=True),
                _stateful_set(name, pods.agent("server", sizes[1]), servers),
            ]
        worker = pods.agent("worker", _largest(sizes[1 + servers :]))
        files["workers.yaml"] = [_job(name, "worker", worker, job.cluster.workers)]
        files["network-policy.yaml"] = [_network_policy(name)]
    return files


def image_of(options: SchedulerFiles, job: JobConfig) -> str:
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
    address = {"clusterIP": "None"} if headless else {}
    selector = metadata(name, component)["labels"]
    spec = {**address, "publishNotReadyAddresses": True, "selector": selector, "ports": ports}
    return _manifest("v1", "Service", name, component, spec=spec)


def _stateful_set(name: str, template: Manifest, replicas: int) -> Manifest:
    spec = {
        "replicas": replicas,
        "serviceName": f"{name}-server",
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": metadata(name, "server")["labels"]},
        "template": template,
    }
    return _manifest("apps/v1", "StatefulSet", name, "server", spec=spec)


def _job(name: str, component: str, template: Manifest, completions: int) -> Manifest:
    """Return a Job that replaces pods, but for those whose exit code is the result of the training."""
    template["spec"]["restartPolicy"] = "Never"
    rules = [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": _PERMANENT}},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": _STOPPED}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    spec = {
        "completionMode": "Indexed",
        "completions": completions,
        "parallelism": completions,
        "backoffLimit": _RETRIES,
        "podFailurePolicy": {"rules": rules},
        "template": template,
    }
    return _manifest("batch/v1", "Job", name, component, spec=spec)


def _network_policy(name: str) -> Manifest:
    """Return a policy that lets pods of the job reach each other, and others only their metrics.

    Roles listen on ports that the kernel assigns; MXNet's listeners serve everybody who reaches them.
    """
    pods = {"podSelector": {"matchLabels": metadata(name)["labels"]}}
    ingress = [{"from": [pods]}, {"ports": [{"protocol": "TCP", "port": METRICS_PORT}]}]
    spec = {**pods, "policyTypes": ["Ingress"], "ingress": ingress}
    return _manifest("networking.k8s.io/v1", "NetworkPolicy", name, spec=spec)


def _overlay(job: JobConfig, options: SchedulerFiles) -> Manifest:
    """Return an overlay that shows what differs between clusters: registry, AWS role, storage class, kind of node."""
    name, image = resource_name(job), re.sub(r"[:@][^/]*$", "", image_of(options, job))
    patches = []
    if options.service_account is None:
        role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/crossfade"}
        patches.append(_patch("ServiceAccount", name, "/metadata/annotations", role))
    if options.claim is None:
        storage_class = "efs-sc" if shares_volume(job) else "gp3"
        patches.append(_patch("PersistentVolumeClaim", f"{name}-runs", "/spec/storageClassName", storage_class))
    component = "worker" if job.cluster.is_distributed else "coordinator"
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


def to_yaml(manifests: Sequence[Manifest]) -> str:
    """Return the text of a file with ``manifests``."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
