"""Files of arrays of shards: valid by the schemas of their schedulers, with commands that crossfade accepts."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import botocore.session
import kubernetes_validate
import pytest
import yaml
from botocore.validate import ParamValidator
from cluster_data import write_job
from command_here import crossfade_here, rejected_here
from running_command import succeeded

from crossfade.cli.main import make_parser
from crossfade.trainer.runs.options import ARRAY_VARIABLES

COMMAND = "recommend s3://music/runs/plays --all -k 20 --shard auto/16 --where 'id > 7' --out s3://music/recs"
WORDS = ["recommend", "s3://music/runs/plays", "--all", "-k", "20"]
WHERE = ["--where", "id > 7", "--out", "s3://music/recs"]
SHARD, MERGE = [*WORDS, "--shard", "auto/16", *WHERE], [*WORDS, "--merge", *WHERE]
PLAN = ("plan", "job.yaml", "--array", COMMAND, "--memory", "1536Mi", "--cores", 3, "--out", "my arrays", "--to")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a job, whose dataset is not needed."""
    write_job(tmp_path / "job.yaml", tmp_path / "data")
    return tmp_path


def written(folder: Path, *options: object) -> tuple[dict[str, str], list[str]]:
    """Write the files of an array; return their texts by name, and what the command has printed."""
    printed = succeeded(crossfade_here(*PLAN, *options, cwd=folder)).stdout.splitlines()
    return {path.name: path.read_text() for path in (folder / "my arrays").iterdir()}, printed


@pytest.mark.parametrize("variable", ARRAY_VARIABLES)
def test_command_of_an_array_is_one_of_crossfade(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "5")
    for words in (SHARD, MERGE):
        parsed = make_parser(["recommend"]).parse_args(words)
        assert parsed.where == "id > 7"
        assert hasattr(parsed, "merge") == (words is MERGE)
        assert hasattr(parsed, "shard") == (words is SHARD)


@pytest.mark.slow
def test_batch_scripts_of_an_array_do_the_shards_and_the_merge(folder: Path) -> None:
    files, printed = written(folder, "slurm", "--partition", "long", "--time", "4:00:00")
    shards, merge = "planted-recommend.sbatch", "planted-recommend-merge.sbatch"
    assert sorted(files) == sorted([shards, merge])
    lines = ["partition=long", "cpus-per-task=3", "mem=1536M", "time=4:00:00", "requeue"]
    for name, words, more in ((shards, SHARD, ["array=1-16"]), (merge, MERGE, ["kill-on-invalid-dep=yes"])):
        for line in (*lines, *more):
            assert f"\n#SBATCH --{line}\n" in files[name]
        environment = os.environ | {"CROSSFADE_COMMAND": "printf", "SLURM_ARRAY_TASK_ID": "3"}
        script = files[name].replace("recommend s3:", r"'%s\n' recommend s3:")
        ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines() == words
    submitted = f"sbatch --dependency=afterok:$(sbatch --parsable 'my arrays/{shards}') 'my arrays/{merge}'"
    assert printed[-1] == f"start it: {submitted}"


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_indexed_job_is_valid(folder: Path, version: str) -> None:
    options = ("--image", "registry/crossfade:1", "--namespace", "music", "--claim", "runs", "--secret", "aws")
    files, printed = written(folder, "kubernetes", "--service-account", "trainer", *options)
    for name, words in (("shards.yaml", SHARD), ("merge.yaml", MERGE)):
        manifest = yaml.safe_load(files[name])
        kubernetes_validate.validate(manifest, version, strict=True)
        [container] = manifest["spec"]["template"]["spec"]["containers"]
        assert (container["image"], container["args"]) == ("registry/crossfade:1", words)
        assert container["resources"]["limits"] == {"memory": "1536Mi"}
    spec = yaml.safe_load(files["shards.yaml"])["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 16, 16)
    assert spec["backoffLimitPerIndex"] == 5
    assert "kubectl wait --namespace music --for=condition=complete" in printed[-1]
    assert "job/planted-recommend && kubectl apply" in printed[-1]


def test_requests_of_aws_batch_are_valid(folder: Path) -> None:
    files, printed = written(folder, "aws-batch", "--image", "123.dkr.ecr.eu-west-1.amazonaws.com/crossfade:cpu")
    model = botocore.session.get_session().get_service_model("batch")
    requests: dict[str, Any] = {name: json.loads(text) for name, text in files.items()}
    assert sorted(requests) == ["job-definition.json", "merge.json", "shards.json"]
    for name, request in requests.items():
        operation = "RegisterJobDefinition" if name == "job-definition.json" else "SubmitJob"
        shape = model.operation_model(operation).input_shape
        assert ParamValidator().validate(request, shape).generate_report() == ""
    shards, merge, definition = (requests[name] for name in ("shards.json", "merge.json", "job-definition.json"))
    assert shards["arrayProperties"] == {"size": 16}
    assert (shards["containerOverrides"], merge["containerOverrides"]) == ({"command": SHARD}, {"command": MERGE})
    needs = {need["type"]: need["value"] for need in definition["containerProperties"]["resourceRequirements"]}
    assert needs == {"VCPU": "3", "MEMORY": "1536"}
    assert definition["retryStrategy"]["attempts"] == 6  # the first counts: five are repeats, as on Kubernetes
    assert printed[-1].endswith("--cli-input-json 'file://my arrays/merge.json' --depends-on jobId=$shards")


def test_invalid_options_of_arrays_are_rejected(folder: Path) -> None:
    plan = ("plan", "job.yaml", "--out", "arrays", "--to")
    for command in ("train job.yaml --shard auto/4", "recommend run --all", "index run --shard auto/1"):
        rejected_here("a command that is not divided", *plan, "slurm", "--array", command, cwd=folder)
    rejected_here("a service without what it needs", *plan, "aws-batch", cwd=folder)
    rejected_here("memory of a task without an array", *plan, "slurm", "--memory", "1Gi", cwd=folder)
    assert not (folder / "arrays").exists()
