"""Manifests for Kubernetes: their schema, what they refer to, and their commands as processes on loopback."""

import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from run_results import report_of
from running_command import RunningCommand, started, succeeded
from scheduled_jobs import Manifests, planned_files, read_manifests
from server_process import is_ok
from waiting import wait_until

from crossfade.trainer.config.loading import make_job

pytestmark = pytest.mark.slow
ON_S3 = {"cluster": {"shared_run_dir": False}, "checkpoint": {"path": "s3://music/checkpoints"}}
GIVEN = ("--secret", "aws", "--claim", "music")
ALONE, SERVERS = {("Job", "coordinator")}, {("StatefulSet", "server"), ("Service", "server")}
AGENTS = {*ALONE, ("Job", "worker"), ("Service", "coordinator")}
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...], set[tuple[str, str]], int]] = {
    "shared": ({}, (), AGENTS | SERVERS, 3),
    "s3": (ON_S3, GIVEN, AGENTS | SERVERS, 1),
    "in-process": ({"cluster": {"servers": 0, "workers": 1}}, (), ALONE, 1),
    "sharded": ({"cluster": {"store": "sharded", "servers": 0}}, (), AGENTS, 2),
    "gpus": ({**ON_S3, "train": {"device": "gpu"}}, (), AGENTS | SERVERS, 1),
}
"""By case: sections of the job, options, workloads and services, and how many kinds of pods mount the claim."""


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_valid_and_refer_to_what_exists(tmp_path: Path, planted_data: Path, case: str) -> None:
    sections, options, expected, mounting = CASES[case]
    words = ("--data", "s3://music/plays", "--image", "registry:5000/crossfade:cpu", *options)
    folder, _ = planned_files(tmp_path, "kubernetes", *words, data=planted_data, name="Planted_plays", **sections)
    manifests = read_manifests(folder.iterdir())
    for manifest in manifests.values():
        for version in ("1.31", "1.34"):  # the first whose pod failure policies are stable, and a newer one
            kubernetes_validate.validate(manifest, version, strict=True)
    name = "planted-plays"
    others = {("ServiceAccount", name), ("ConfigMap", f"{name}-job")}
    others |= set() if options else {("PersistentVolumeClaim", f"{name}-runs")}
    others |= {("NetworkPolicy", name)} if ("Job", "worker") in expected else set()
    assert set(manifests) == {(kind, f"{name}-{role}") for kind, role in expected} | others
    job = make_job(manifests["ConfigMap", f"{name}-job"]["data"]["job.yaml"], "the ConfigMap")
    assert (job.data.path, job.cluster.one_role_per_host) == ("s3://music/plays", case != "in-process")
    known, claims = {*manifests, ("PersistentVolumeClaim", "music")}, 0
    for (_, workload), manifest in manifests.items():
        if "template" not in manifest.get("spec", {}):
            continue
        spec, role = manifest["spec"]["template"]["spec"], workload.rpartition("-")[2]
        named = references(spec)
        assert named <= known
        claims += "PersistentVolumeClaim" in dict(named)
        [container] = spec["containers"]
        count = {"server": job.cluster.servers, "worker": job.cluster.workers, "coordinator": 1}[role]
        assert manifest["spec"].get("replicas", manifest["spec"].get("completions")) == count
        gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
        assert gpus == (1 if case == "gpus" and role == "worker" else 0)
        assert spec["restartPolicy"] == ("Always" if role == "server" else "Never")
        assert spec["terminationGracePeriodSeconds"] == 120  # 60 of the job, and twice 30 to end
        assert ("envFrom" in container) == bool(options)
    assert claims == mounting
    if not options:
        [mode] = manifests["PersistentVolumeClaim", f"{name}-runs"]["spec"]["accessModes"]
        assert mode == ("ReadWriteMany" if mounting > 1 else "ReadWriteOnce")


def references(spec: dict[str, Any]) -> set[tuple[str, str]]:
    """Return kind and name of what the pods of a template refer to."""
    [container] = spec["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    joined = [word.partition("=")[2].partition(":")[0] for word in container["args"] if word.startswith("--join")]
    found = {("ServiceAccount", spec["serviceAccountName"]), *(("Service", name) for name in joined)}
    for volume in spec["volumes"]:
        if "persistentVolumeClaim" in volume:
            found.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        if "configMap" in volume:
            found.add(("ConfigMap", volume["configMap"]["name"]))
    return found


class LocalPods:
    """Runs the containers of manifests as processes: volumes are folders, and each pod has a loopback address."""

    def __init__(self, folder: Path, found: Manifests, stack: ExitStack) -> None:
        self._folder, self._found, self._stack = folder, found, stack
        # Other tests may use the fixed ports at the usual addresses at the same time.
        self._network = f"127.{os.getpid() % 250 + 1}.{os.getpid() // 250 % 250 + 1}"
        (folder / "job").mkdir()
        for name, text in found["ConfigMap", "planted-job"]["data"].items():
            (folder / "job" / name).write_text(self._local(text))

    def _local(self, text: str) -> str:
        """Return ``text`` with paths in volumes, and the name of a service, as they are here."""
        text = re.sub(r"(?<![\w/])/(runs|job)(?=/)", rf"{self._folder}/\1", text)
        return text.replace("planted-coordinator:", f"{self._network}.1:")

    def start(self, kind: str, name: str, number: int) -> tuple[RunningCommand, str]:
        """Start the container as pod ``number``; return it, and the address of its probes."""
        [container] = self._found[kind, name]["spec"]["template"]["spec"]["containers"]
        address = f"{self._network}.{number}"
        variables = {each["name"]: each.get("value", "0123456789abcdef-token") for each in container["env"]}
        variables["POD_IP"] = address
        expanded = [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word) for word in container["args"]]
        arguments = [self._local(word) for word in expanded]
        [port] = [port["containerPort"] for port in container["ports"] if port["name"] == "metrics"]
        probe = f"http://{address}:{port}{container['livenessProbe']['httpGet']['path']}"
        return self._stack.enter_context(started(*arguments, cwd=self._folder, variables=variables)), probe


@pytest.mark.cluster
def test_commands_of_the_containers_train_to_the_end(tmp_path: Path, planted_data: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "data").symlink_to(planted_data)
    cluster = {"servers": 1, "workers": 1}
    files, _ = planned_files(tmp_path, "kubernetes", "--data", "/runs/data", data=planted_data, cluster=cluster)
    with ExitStack() as stack:
        local = LocalPods(tmp_path, read_manifests(files.iterdir()), stack)
        # The agents are there first, and wait for the coordinator.
        pods = {
            "server": local.start("StatefulSet", "planted-server", 2),
            "worker": local.start("Job", "planted-worker", 3),
        }
        wait_until(lambda: all(is_ok(probe) for _, probe in pods.values()), "healthy agents")
        coordinator, probe = local.start("Job", "planted-coordinator", 1)
        wait_until(lambda: is_ok(probe), "a healthy coordinator")
        assert "1 scheduler, 1 server, 1 worker" in succeeded(coordinator.finish()).stderr
        for role, (agent, _) in pods.items():
            assert f": {role}-" in succeeded(agent.finish()).stderr
    assert report_of(tmp_path / "runs" / "planted")["steps"] > 0
