"""Manifests for Kubernetes: their schema, what they refer to, and their commands as processes on loopback."""

import os
import re
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from run_results import report_of
from running_command import RunningCommand, started, succeeded
from scheduled_jobs import BUCKET_DATA, find, kubernetes_of, manifests, scheduled_job
from waiting import wait_until

from crossfade.base.errors import InputError
from crossfade.deploy.schedulers.kubernetes import resource_name
from crossfade.deploy.schedulers.options import SchedulerFiles
from crossfade.trainer.config.loading import make_job
from crossfade.trainer.config.schema import JobConfig

pytestmark = pytest.mark.slow

OPTIONS = SchedulerFiles(image="registry:5000/crossfade:cpu", namespace="music")
VERSIONS = ("1.31", "1.34")
"""The first version whose pod failure policies are stable, and a newer one."""
ON_S3 = {"cluster": {"shared_run_dir": False}, "checkpoint": {"path": "s3://music/checkpoints"}}
JOBS: dict[str, dict[str, Any]] = {
    "shared": {},
    "s3": ON_S3,
    "in-process": {"cluster": {"servers": 0, "workers": 1}},
    "sharded": {"cluster": {"store": "sharded", "servers": 0}},
    "gpus": {**ON_S3, "train": {"device": ["gpu:0", "gpu:1"]}},
}

Made = tuple[JobConfig, dict[str, str]]


@pytest.fixture(scope="module", params=JOBS)
def made(request: pytest.FixtureRequest, planted_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a job as its pods run it, and its files."""
    job = scheduled_job(tmp_path_factory.mktemp("job"), planted_data, **JOBS[request.param], name="Planted_plays")
    secret = {"secret": "aws", "service_account": "trainer", "claim": "music"} if request.param == "s3" else {}
    return kubernetes_of(job, SchedulerFiles(image="registry:5000/crossfade:cpu", namespace="music", **secret))


@pytest.fixture
def shared(planted_data: Path, tmp_path: Path) -> Made:
    """Return a job whose pods share a volume, and its files."""
    return kubernetes_of(scheduled_job(tmp_path, planted_data, cluster={"grace_period_seconds": 45.5}), OPTIONS)


def pods(files: dict[str, str]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each workload and the template of its pods."""
    for manifest in manifests(files):
        if "template" in manifest.get("spec", {}):
            yield manifest, manifest["spec"]["template"]


def container_of(files: dict[str, str], kind: str, name: str) -> dict[str, Any]:
    [container] = find(files, kind, name)["spec"]["template"]["spec"]["containers"]
    return container


# ---- validity


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid(made: Made, version: str) -> None:
    for manifest in manifests(made[1]):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_schema_rejects_a_misspelled_key(shared: Made) -> None:
    service = find(shared[1], "Service", "planted-server")
    service["spec"]["selectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="selectors"):
        kubernetes_validate.validate(service, VERSIONS[-1], strict=True)


def test_job_in_the_config_map_is_the_job(made: Made) -> None:
    job, files = made
    [text] = find(files, "ConfigMap", "planted-plays-job")["data"].values()
    assert make_job(text, "the ConfigMap") == job
    assert job.data.path == BUCKET_DATA
    assert job.cluster.one_role_per_host == job.cluster.is_distributed


def test_kustomization_lists_every_file(made: Made) -> None:
    _, files = made
    base = yaml.safe_load(files["base/kustomization.yaml"])
    assert base["namespace"] == "music"
    written = {path.removeprefix("base/") for path in files if path.startswith("base/")}
    assert {*base["resources"], "kustomization.yaml"} == written
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests(files)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name) for _, name in names)


def test_overlay_changes_what_is_there(made: Made) -> None:
    _, files = made
    overlay = yaml.safe_load(files["overlays/example/kustomization.yaml"])
    assert overlay["resources"] == ["../../base"]
    for patch in overlay["patches"]:
        target = find(files, **patch["target"])
        [operation] = yaml.safe_load(patch["patch"])
        *parents, added = operation["path"].strip("/").split("/")
        for key in parents:
            target = target[key]
        target[added] = operation["value"]
    images = {template["spec"]["containers"][0]["image"] for _, template in pods(files)}
    assert images == {f"{overlay['images'][0]['name']}:cpu"}


# ---- references inside the manifests


def test_selectors_find_the_pods_they_mean(made: Made) -> None:
    _, files = made
    labels = {workload["metadata"]["name"]: template["metadata"]["labels"] for workload, template in pods(files)}
    for manifest in manifests(files):
        name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
        selector = {
            "Service": lambda spec: spec["selector"],
            "StatefulSet": lambda spec: spec["selector"]["matchLabels"],
        }
        if manifest["kind"] in selector:
            wanted = selector[manifest["kind"]](spec).items()
            assert [pod for pod, found in labels.items() if wanted <= found.items()] == [name]
    if "planted-plays-worker" in labels:
        policy = find(files, "NetworkPolicy", "planted-plays")["spec"]
        assert all(policy["podSelector"]["matchLabels"].items() <= found.items() for found in labels.values())
        # Every port between pods of the job: workers that hold the tables listen on free ones, as MXNet's roles do.
        assert policy["ingress"][0] == {"from": [{"podSelector": policy["podSelector"]}]}
    if "planted-plays-server" in labels:
        assert find(files, "StatefulSet", "planted-plays-server")["spec"]["serviceName"] == "planted-plays-server"


def test_pods_refer_to_what_exists(made: Made) -> None:
    job, files = made
    existing = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests(files)}
    existing |= {("ServiceAccount", "trainer"), ("PersistentVolumeClaim", "music")}
    for _, template in pods(files):
        spec = template["spec"]
        [container] = spec["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        named = [("ServiceAccount", spec["serviceAccountName"])]
        for volume in spec["volumes"]:
            if "configMap" in volume:
                named.append(("ConfigMap", volume["configMap"]["name"]))
            if "persistentVolumeClaim" in volume:
                named.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        assert set(named) <= existing
        ports = {port["name"] for port in container["ports"]}
        probes = [container[kind] for kind in ("startupProbe", "livenessProbe", "readinessProbe") if kind in container]
        assert {(probe.get("httpGet") or probe["tcpSocket"])["port"] for probe in probes} <= ports
        join = [word for word in container["args"] if word.startswith("--join=")]
        assert [("Service", word.partition("=")[2].partition(":")[0]) in existing for word in join] == [True] * len(
            join
        )
    volumes = [volume for _, template in pods(files) for volume in template["spec"]["volumes"]]
    claims = [volume for volume in volumes if "persistentVolumeClaim" in volume]
    # Without a shared folder, the coordinator alone keeps its run folder: the report, events and embeddings.
    pods_that_share = 1 + (job.cluster.servers > 0) + job.cluster.is_distributed
    assert len(claims) == (pods_that_share if job.cluster.shared_run_dir else 1)
    if ("PersistentVolumeClaim", "planted-plays-runs") in existing:
        [mode] = find(files, "PersistentVolumeClaim", "planted-plays-runs")["spec"]["accessModes"]
        assert mode == ("ReadWriteMany" if len(claims) > 1 else "ReadWriteOnce")


def test_secrets_are_references(made: Made) -> None:
    job, files = made
    assert "Secret" not in {manifest["kind"] for manifest in manifests(files)}
    for _, template in pods(files):
        [container] = template["spec"]["containers"]
        variables = {variable["name"]: variable for variable in container["env"]}
        if job.cluster.is_distributed:
            reference = {"secretKeyRef": {"name": "planted-plays-token", "key": "token"}}
            assert variables["CROSSFADE_TOKEN"] == {"name": "CROSSFADE_TOKEN", "valueFrom": reference}
        given = {name for name, variable in variables.items() if "value" in variable}
        assert given == {"OMP_NUM_THREADS", "NUMBA_NUM_THREADS"}
        if template["spec"]["serviceAccountName"] == "trainer":
            assert container["envFrom"] == [{"secretRef": {"name": "aws"}}]
        else:
            assert "envFrom" not in container


def test_requests_are_the_sizes_of_the_plan(made: Made) -> None:
    job, files = made
    for workload, template in pods(files):
        [container] = template["spec"]["containers"]
        resources, role = container["resources"], container["name"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert re.fullmatch(r"\d+Mi", resources["limits"]["memory"])
        assert float(resources["requests"]["cpu"]) >= 0.5
        gpus = 2 if job.train.devices[0] == "gpu:0" and role == "worker" else 0
        assert resources["limits"].get("nvidia.com/gpu", 0) == gpus
        count = {"server": job.cluster.servers, "worker": job.cluster.workers, "coordinator": 1}[role]
        assert workload["spec"].get("replicas", workload["spec"].get("completions")) == count


# ---- ends and restarts


def test_pods_outlive_the_checkpoint_that_their_end_asks_for(shared: Made) -> None:
    job, files = shared
    for _, template in pods(files):
        [container] = template["spec"]["containers"]
        lingering = [word for word in container["args"] if word.startswith("--grace-period=")]
        for word in lingering:
            seconds = int(word.partition("=")[2])
            assert job.cluster.grace_period_seconds + 30 <= seconds < template["spec"]["terminationGracePeriodSeconds"]
        assert bool(lingering) == (container["args"][0] == "agent")
        assert template["spec"]["terminationGracePeriodSeconds"] > job.cluster.grace_period_seconds + 30


def test_jobs_end_with_the_results_of_the_training_and_replace_other_pods(shared: Made) -> None:
    for name in ("planted-coordinator", "planted-worker"):
        spec = find(shared[1], "Job", name)["spec"]
        result, stopped, evicted = spec["podFailurePolicy"]["rules"]
        assert (result["action"], result["onExitCodes"]["values"]) == ("FailJob", [1, 2])
        assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [143])
        assert (evicted["action"], evicted["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
        assert (spec["completionMode"], spec["completions"]) == ("Indexed", spec["parallelism"])
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert "restartPolicy" not in find(shared[1], "StatefulSet", "planted-server")["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"checkpoint": {"path": "checkpoints"}}, "checkpoint.path"),
        ({"checkpoint": {"warm_start_from": "/home/me/runs/old"}}, "checkpoint.warm_start_from"),
        ({"model": {"start": {"track": "/home/me/vectors.parquet"}}}, "model.start.track"),
        ({}, "data.path"),
    ],
)
def test_paths_of_this_machine_are_rejected(
    tmp_path: Path, planted_data: Path, section: dict[str, Any], key: str
) -> None:
    data = str(planted_data) if key == "data.path" else "/runs/data/plays"
    job = scheduled_job(tmp_path, planted_data, **section)
    with pytest.raises(InputError, match=f"^{re.escape(key)}: .* is a path of this machine, which pods cannot read"):
        kubernetes_of(job, OPTIONS, data)


def test_resource_names_are_labels(tmp_path: Path, planted_data: Path) -> None:
    job = scheduled_job(tmp_path, planted_data, name=f"A__{'b' * 36}-c-d_")
    assert resource_name(job) == f"a-{'b' * 36}-c"


# ---- the commands of the containers, as processes


class LocalPods:
    """Runs the containers of manifests as processes: volumes are folders, and each pod has a loopback address."""

    def __init__(self, folder: Path, files: dict[str, str], stack: ExitStack) -> None:
        self._folder, self._files, self._stack = folder, files, stack
        # Other tests may use the fixed ports at the usual addresses at the same time.
        self._network = f"127.{os.getpid() % 250 + 1}.{os.getpid() // 250 % 250 + 1}"
        (folder / "job").mkdir()
        for name, text in find(files, "ConfigMap", "planted-job")["data"].items():
            (folder / "job" / name).write_text(self._local(text))

    def _local(self, text: str) -> str:
        """Return ``text`` with paths in volumes, and the name of a service, as they are here."""
        text = re.sub(r"(?<![\w/])/(runs|job)(?=/)", rf"{self._folder}/\1", text)
        return text.replace("planted-coordinator:", f"{self._network}.1:")

    def start(self, kind: str, name: str, number: int) -> tuple[RunningCommand, str]:
        """Start the container as pod ``number``; return it, and the address of its probes."""
        container = container_of(self._files, kind, name)
        address = f"{self._network}.{number}"
        variables = {each["name"]: each.get("value", "0123456789abcdef-token") for each in container["env"]}
        variables["POD_IP"] = address
        expanded = [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word) for word in container["args"]]
        arguments = [self._local(word) for word in expanded]
        [port] = [port["containerPort"] for port in container["ports"] if port["name"] == "metrics"]
        probe = f"http://{address}:{port}{container['livenessProbe']['httpGet']['path']}"
        return self._stack.enter_context(started(*arguments, cwd=self._folder, variables=variables)), probe


def is_healthy(probe: str) -> bool:
    try:
        with urllib.request.urlopen(probe, timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("store", ["mxnet", "sharded"])
def test_commands_of_the_containers_train_to_the_end(tmp_path: Path, planted_data: Path, store: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "data").symlink_to(planted_data)
    is_held = store == "sharded"
    cluster = {"store": store, "servers": 0 if is_held else 1, "workers": 2 if is_held else 1}
    _, files = kubernetes_of(scheduled_job(tmp_path, planted_data, cluster=cluster), OPTIONS, data="/runs/data")
    with ExitStack() as stack:
        local = LocalPods(tmp_path, files, stack)
        # The agents are there first, and wait for the coordinator.
        pods = [("Job", "worker")] * 2 if is_held else [("StatefulSet", "server"), ("Job", "worker")]
        agents = [local.start(kind, f"planted-{role}", number) for number, (kind, role) in enumerate(pods, start=2)]
        wait_until(lambda: all(is_healthy(probe) for _, probe in agents), "healthy agents")
        coordinator, probe = local.start("Job", "planted-coordinator", 1)
        wait_until(lambda: is_healthy(probe), "a healthy coordinator")
        stderr = succeeded(coordinator.finish()).stderr
        assert ("2 workers, which hold the tables" if is_held else "1 scheduler, 1 server, 1 worker") in stderr
        for (agent, _), (_, role) in zip(agents, pods, strict=True):
            said = succeeded(agent.finish()).stderr
            assert f": {role}-" in said
            assert "the job is done" in said
    assert report_of(tmp_path / "runs" / "planted")["steps"] > 0
