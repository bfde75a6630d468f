"""The pods of a job on Kubernetes: the coordinator, and agents that accept one kind of role."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from crossfade.deploy.cluster.coordinator import EXIT_TIMEOUT_SECONDS
from crossfade.deploy.schedulers.sizes import HostSize, requested_gpus
from crossfade.deploy.topology import THREAD_VARIABLES, TOKEN_VARIABLE
from crossfade.trainer.config.schema import JobConfig

PORT, METRICS_PORT = 7070, 9400
RUNS_FOLDER, JOB_FOLDER = "/runs", "/job"
TOKEN_KEY = "token"  # noqa: S105 - the key in the secret
START_SECONDS = 1800
"""Time for a pod to answer, which the coordinator does once it has read the dataset's manifest and row counts."""
_USER = 10001
"""The image's user crossfade (docker/Dockerfile)."""
_PROBE_SECONDS = 10

Manifest = dict[str, Any]


def metadata(name: str, component: str | None = None) -> Manifest:
    """Return the metadata of a resource of the job ``name``, or of its ``component``."""
    labels = {"app.kubernetes.io/name": "crossfade", "app.kubernetes.io/instance": name}
    if component is not None:
        labels["app.kubernetes.io/component"] = component
    return {"name": f"{name}-{component}" if component else name, "labels": labels}


def shares_volume(job: JobConfig) -> bool:
    """Return whether all pods of ``job`` mount the volume; with other shared storage, only the coordinator does."""
    return bool(job.cluster.servers) and job.cluster.shared_run_dir


def claim(name: str, storage: str, *, shared: bool) -> Manifest:
    """Return a claim for the volume of runs: of all pods if they share it, else of the coordinator."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(name, "runs"),
        "spec": {
            "accessModes": ["ReadWriteMany" if shared else "ReadWriteOnce"],
            "resources": {"requests": {"storage": storage}},
        },
    }


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
        """Return the pod of ``crossfade train``, which also runs MXNet's scheduler, or trains if there are no servers.

        On a volume that pods share, a pod that was lost may hold the run's lock for a while after its replacement has
        started, which then waits.
        """
        distributed = bool(self.job.cluster.servers)
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
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }

    def _variables(self) -> list[Manifest]:
        """Return the variables for the pod's address and, with servers, the token by which agents authenticate."""
        address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
        if not self.job.cluster.servers:
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
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": _USER,
                    "runAsGroup": _USER,
                    "fsGroup": _USER,
                    "fsGroupChangePolicy": "OnRootMismatch",
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [container],
                "volumes": volumes,
            },
        }
