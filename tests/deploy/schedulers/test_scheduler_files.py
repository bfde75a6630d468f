"""The options of ``crossfade plan --to``: what they write, and how they are rejected."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from running_command import single_line, succeeded

SIZES = ("--servers", 2, "--workers", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a job, ``job.yaml``, on a small dataset."""
    folder = tmp_path_factory.mktemp("plan")
    write_job(folder / "job.yaml", write_planted(folder / "data"))
    return folder


def test_manifests_are_written_as_options_specify(folder: Path) -> None:
    options = ("--data", "s3://music/plays", "--image", "registry/crossfade:1", "--namespace", "music")
    accounts = ("--service-account", "trainer", "--secret", "aws", "--storage", "2Ti", "--cores", 7)
    plan = ("plan", "job.yaml", *SIZES, "--to", "kubernetes", "--out", "k8s", *options, *accounts)
    printed = succeeded(crossfade_here(*plan, cwd=folder)).stdout.splitlines()
    assert [line.split()[:2] for line in printed[1:4]] == [["coordinator", "1"], ["server", "2"], ["worker", "2"]]
    assert printed[4].startswith("wrote base/job.yaml, ")
    assert printed[4].endswith(" to k8s")
    assert "kubectl create secret generic planted-token --namespace music " in printed[5]
    assert printed[6] == "start it: kubectl apply -k k8s/base"
    text = "".join(path.read_text() for path in (folder / "k8s" / "base").iterdir())
    for expected in ("image: registry/crossfade:1", "serviceAccountName: trainer", "storage: 2Ti", "cpu: '7'"):
        assert expected in text
    assert "kind: ServiceAccount" not in text
    assert yaml.safe_load((folder / "k8s/base/kustomization.yaml").read_text())["namespace"] == "music"


@pytest.mark.parametrize("workers", [1, 2])
def test_files_keep_servers_that_this_machine_has_no_package_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setitem(sys.modules, "mxnet", None)
    sizes = ("--servers", 2, "--workers", workers)
    plan = ("plan", "job.yaml", *sizes, "--to", "kubernetes", "--out", f"of-{workers}", "--data", "s3://music/plays")
    printed = succeeded(crossfade_here(*plan, cwd=folder)).stdout.splitlines()
    expected = [["coordinator", "1"], ["server", "2"], ["worker", str(workers)]]
    assert [line.split()[:2] for line in printed[1:4]] == expected
    here = succeeded(crossfade_here("plan", "job.yaml", *sizes, cwd=folder)).stdout
    assert ("2 workers, which hold the tables" if workers == 2 else "in process") in here


@pytest.mark.parametrize(
    ("train", "image"),
    [
        ({}, "cpu"),
        ({"engine": "mxnet"}, "cpu"),
        ({"engine": "torch"}, "torch"),
        ({"device": "gpu"}, "torch"),
        ({"engine": "mxnet", "device": "gpu"}, "cu112"),
    ],
)
def test_default_image_has_the_engine_of_the_job(folder: Path, train: dict[str, str], image: str) -> None:
    options = [f"--set=train.{key}={value}" for key, value in train.items()]
    plan = ("plan", "job.yaml", *SIZES, "--to", "kubernetes", "--out", "images", "--data", "s3://music/plays", *options)
    succeeded(crossfade_here(*plan, cwd=folder))
    assert f"image: crossfade:{image}\n" in (folder / "images" / "base" / "workers.yaml").read_text()


def test_batch_script_is_written_as_options_specify(folder: Path) -> None:
    options = ("--hosts", 2, "--cores", 5, "--time", "1-0:30", "--partition", "long", "--run-dir", "/shared/plays")
    plan = ("plan", "job.yaml", *SIZES, "--to", "slurm", "--out", "slurm", "--data", "/shared/data", *options)
    printed = succeeded(crossfade_here(*plan, cwd=folder)).stdout.splitlines()
    assert printed[1].split()[:3] == ["node", "2", "5.0"]
    assert printed[-2:] == ["wrote planted.sbatch, job.yaml to slurm", "start it: sbatch slurm/planted.sbatch"]
    script = (folder / "slurm/planted.sbatch").read_text()
    for line in ("nodes=2", "cpus-per-task=5", "time=1-0:30", "partition=long"):
        assert f"\n#SBATCH --{line}\n" in script
    assert f"\njob={folder}/slurm/job.yaml\nrun_dir=/shared/plays\n" in script
    assert yaml.safe_load((folder / "slurm/job.yaml").read_text())["data"]["path"] == "/shared/data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--to slurm", "--to slurm: name the folder of the files, as in --out slurm"),
        ("--to slurm --out o --image i", "--image: has no meaning with --to slurm; leave one of them out"),
        ("--to kubernetes --out o --time 1", "--time: has no meaning with --to kubernetes; leave one of them out"),
        ("--to kubernetes --out o --hosts 2", "--hosts: has no meaning with --to kubernetes; leave one of them out"),
        ("--to slurm --out o --json", "--json: has no meaning with --to slurm; leave one of them out"),
        ("--to slurm --out o --time 4h", "--time 4h: expected a time limit of Slurm such as 4:00:00 or 1-12:00:00"),
        ("--to kubernetes --out o --storage 9", "--storage 9: expected a size such as 500Mi, 20Gi or 1Ti"),
        ("--to kubernetes --out o --secret A_B", "--secret A_B: expected lower-case letters, digits and hyphens"),
        ("--claim c", "--claim: is for the files of a scheduler; add --to kubernetes"),
        ("--cores 8", "--cores: is for the files of a scheduler; add --to slurm or --to kubernetes"),
        ("--data d", "--data: is for the files of a scheduler; add --to slurm or --to kubernetes"),
        ("--to slurm --out job.yaml", "--out job.yaml: cannot be written: File exists; name a folder"),
    ],
)
def test_invalid_options_are_rejected(folder: Path, arguments: str, message: str) -> None:
    result = crossfade_here("plan", "job.yaml", *SIZES, *arguments.split(), cwd=folder)
    assert single_line(result.returncode, result.stdout, result.stderr) == message


def test_dataset_that_pods_cannot_read_is_rejected(folder: Path) -> None:
    plan = ("plan", "job.yaml", *SIZES, "--to", "kubernetes", "--out", "unwritten")
    result = crossfade_here(*plan, cwd=folder)
    message = single_line(result.returncode, result.stdout, result.stderr)
    assert re.match(r"data\.path: .*/data is a path of this machine, which pods cannot read; expected s3://", message)
    assert not (folder / "unwritten").exists()
