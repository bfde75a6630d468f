"""The options of ``crossfade plan --to``: what they write, and how they are rejected."""

from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from running_command import single_line, succeeded

from crossfade.deploy.capacity.plan import plan_capacity
from crossfade.deploy.capacity.plan_inputs import read_inputs
from crossfade.deploy.schedulers.options import PlanOptions
from crossfade.deploy.schedulers.scheduler_files import adapt_job, size_hosts

NOT_READ = (
    "is a path of this machine, which pods cannot read; expected s3://BUCKET/PREFIX or a path below /runs, where the "
    "volume is mounted: set {}"
)
NAMED = ", or name where the pods find the dataset with --data"
SIZES = ("--servers", 2, "--workers", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a job, ``job.yaml``, on a small dataset."""
    folder = tmp_path_factory.mktemp("plan")
    write_job(folder / "job.yaml", write_planted(folder / "data"))
    return folder


def test_manifests_are_written_as_options_specify(folder: Path) -> None:
    options = ("--data", "s3://music/plays", "--image", "registry/crossfade:1")
    plan = ("plan", "job.yaml", *SIZES, "--to", "kubernetes", "--out", "k 8s", *options)
    printed = succeeded(crossfade_here(*plan, "--cores", 7, cwd=folder)).stdout.splitlines()
    assert [line.split()[:3] for line in printed[1:4]] == [
        ["coordinator", "1", "0.5"],
        ["server", "2", "1.0"],
        ["worker", "2", "7.0"],
    ]
    create = "kubectl create secret generic planted-token --from-literal=token=$(openssl rand -hex 32)"
    assert printed[4:] == [
        "wrote planted.yaml to k 8s",
        f"create the token of its pods: {create}",
        "start it: kubectl apply -f 'k 8s/planted.yaml'",
    ]
    text = (folder / "k 8s/planted.yaml").read_text()
    for expected in ("image: registry/crossfade:1", "cpu: '7'", "value: '7'"):
        assert expected in text


def test_memory_is_the_peak_of_each_host_with_headroom(folder: Path) -> None:
    job = adapt_job(PlanOptions.of(job=folder / "job.yaml", servers=2, workers=3).load_job(), "kubernetes")
    plan = plan_capacity(read_inputs(job))
    assert [host.processes for host in plan.hosts][:2] == [("train", "scheduler"), ("train", "server-0")]
    for kind, hosts in size_hosts(plan).items():
        alike = plan.hosts[:1] if kind == "coordinator" else plan.hosts[1:3] if kind == "server" else plan.hosts[3:]
        least = max(host.peak_bytes for host in alike) * 1.1 + 2**28
        assert least <= hosts.memory_mib * 2**20 < least + 2**26
        assert hosts.number == len(alike)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--to slurm", "--to slurm: name the folder of the files, as in --out slurm"),
        ("--to slurm --out o --image i", "--image: has no meaning with --to slurm; leave one of them out"),
        ("--to kubernetes --out o --hosts 2", "--hosts: has no meaning with --to kubernetes; leave one of them out"),
        ("--claim c", "--claim: is for the files of a scheduler; add --to kubernetes"),
        ("--cores 8", "--cores: is for the files of a scheduler; add --to slurm or --to kubernetes"),
        ("--to slurm --out job.yaml", "--out job.yaml: cannot be written: File exists; name a folder"),
        ("--to kubernetes --out o", "data.path: {folder}/data " + NOT_READ.format("data.path") + NAMED),
        (
            "--to kubernetes --out o --data /runs/a --set checkpoint.path=s3",
            "checkpoint.path: s3 " + NOT_READ.format("checkpoint.path"),
        ),
    ],
)
def test_invalid_options_are_rejected(folder: Path, arguments: str, message: str) -> None:
    result = crossfade_here("plan", "job.yaml", *SIZES, *arguments.split(), cwd=folder)
    assert single_line(result.returncode, result.stdout, result.stderr) == message.format(folder=folder)
    assert not (folder / "o").exists()
