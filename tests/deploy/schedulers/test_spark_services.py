"""Files of managed Spark services: valid by the models of their clients, with a command that crossfade accepts."""

import json
import runpy
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from cluster_data import write_job
from command_here import crossfade_here, rejected_here
from databricks.sdk.service.compute import DataSecurityMode
from databricks.sdk.service.jobs import JobSettings
from running_command import succeeded

from crossfade.cli import main as cli
from crossfade.deploy.schedulers.spark_services import PACKAGES, WHEEL

EVENTS = ["--events", "s3://music/plays/*.parquet", "--hold-out", "after:2026-11-01 00:00"]
WORDS = ["prepare", *EVENTS, "--engine", "spark", "--out", "s3://music/prepared"]
COMMAND = "prepare --events 's3://music/plays/*.parquet' --hold-out 'after:2026-11-01 00:00' {}--engine spark --out {}"
OUT = "s3://music/prepared"
UPLOAD, ROLE = "s3://music/jobs", "arn:aws:iam::123456789012:role/music"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/sagemaker-spark-processing:3.5-cpu-py312-v1.3"
MORE = {"emr-serverless": ("--application", "00f5abcdef"), "sagemaker-processing": ("--image", IMAGE)}
SERVICES = ("emr-serverless", "glue", "sagemaker-processing", "databricks")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a job, whose dataset is not needed."""
    write_job(tmp_path / "job.yaml", tmp_path / "data")
    return tmp_path


def plan(service: str, memory: str = "", out: str = OUT) -> tuple[str, ...]:
    """Return the words that write the files of a service."""
    command = COMMAND.format(f"--memory {memory} " if memory else "", out)
    places = ("--out", "my files", "--upload", f"{UPLOAD}/", "--role", ROLE)
    return ("plan", "job.yaml", "--to", service, "--spark", command, *places, *MORE.get(service, ()))


def written(folder: Path, service: str, *options: object, memory: str = "") -> tuple[dict[str, str], list[str]]:
    """Write the files of a service; return their texts by name, and what the command has printed."""
    printed = succeeded(crossfade_here(*plan(service, memory), *options, cwd=folder)).stdout.splitlines()
    out = folder / "my files"
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}, printed


def request(files: dict[str, str], service: str, operation: str, **filled_in: str) -> Any:
    """Return a definition, which is valid with what the client fills in."""
    definition = json.loads(files["job.json"])
    shape = botocore.session.get_session().get_service_model(service).operation_model(operation).input_shape
    assert ParamValidator().validate(definition | filled_in, shape).generate_report() == ""
    return definition


@pytest.mark.parametrize("service", SERVICES)
def test_script_runs_the_command(folder: Path, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, ran = written(folder, service)[0]["crossfade_on_spark.py"], []

    def run(words: list[str]) -> int:
        ran.append(words)
        return len(ran) - 1

    monkeypatch.setattr(cli, "main", run)
    (folder / "script.py").write_text(script)
    runpy.run_path(str(folder / "script.py"), run_name="__main__")  # no exception: some services count one as a failure
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(folder / "script.py"), run_name="__main__")
    assert ran == [WORDS, WORDS]


def test_input_of_emr_serverless_is_valid(folder: Path) -> None:
    files, printed = written(folder, "emr-serverless", "--executors", 20, "--cores", 8, memory="4")
    definition = request(files, "emr-serverless", "StartJobRun", clientToken="one")
    submitted = definition["jobDriver"]["sparkSubmit"]
    assert submitted["entryPoint"] == f"{UPLOAD}/crossfade_on_spark.py"
    words = submitted["sparkSubmitParameters"].split()
    assert set(words[::2]) == {"--conf"}
    settings = dict(word.split("=", 1) for word in words[1::2])
    assert settings["spark.archives"] == f"{UPLOAD}/environment.tar.gz#environment"
    assert settings["spark.executor.instances"] == "20"
    sizes = [settings[f"spark.executor.{name}"] for name in ("cores", "memory", "memoryOverhead")]
    assert sizes == ["8", "22g", "38g"]  # 8 tasks of 4.75 GiB; together what 8 CPUs may have at most
    assert f"COPY {WHEEL} /" in files["Dockerfile"]
    assert printed[1] == "build the package, in a checkout: python -m build --wheel --outdir 'my files'"
    assert printed[3] == f"upload all: aws s3 cp --recursive 'my files' {UPLOAD}"
    assert printed[4].endswith("--cli-input-json 'file://my files/job.json'")


@pytest.mark.parametrize(("memory", "worker", "java"), [("", "G.1X", "5g"), ("3", "R.1X", "9g")])
def test_input_of_glue_is_valid(folder: Path, memory: str, worker: str, java: str) -> None:
    files, printed = written(folder, "glue", memory=memory)
    definition = request(files, "glue", "CreateJob")
    assert (definition["WorkerType"], definition["NumberOfWorkers"]) == (worker, 5)
    arguments = definition["DefaultArguments"]
    assert arguments["--additional-python-modules"].startswith(f"{UPLOAD}/{WHEEL},boto3>=")
    overhead = "15g" if memory else "5g"
    settings = [f"spark.executor.memory={java}", f"spark.executor.memoryOverhead={overhead}"]
    assert arguments["--conf"].split(" --conf ") == [*settings, "spark.default.parallelism=16"]
    assert printed[-1] == "start it: aws glue start-job-run --job-name planted-prepare"


def test_input_of_sagemaker_processing_is_valid(folder: Path) -> None:
    files, printed = written(folder, "sagemaker-processing", "--cores", 16)
    definition = request(files, "sagemaker", "CreateProcessingJob")
    cluster = definition["ProcessingResources"]["ClusterConfig"]
    assert (cluster["InstanceType"], cluster["InstanceCount"]) == ("ml.m5.4xlarge", 4)
    [entry] = definition["ProcessingInputs"]
    assert entry["S3Input"]["S3Uri"] == f"{UPLOAD}/"
    path = entry["S3Input"]["LocalPath"]
    shell = definition["AppSpecification"]["ContainerEntrypoint"][-1]
    assert shell.startswith(f"python3 -m pip install {path}/{WHEEL} 'boto3>=")
    assert shell.endswith(f" && exec smspark-submit {path}/crossfade_on_spark.py")
    [configured] = json.loads(files["conf/configuration.json"])
    assert configured["Properties"]["spark.executor.memoryOverhead"] == "20g"
    assert printed[-1].endswith(" --processing-job-name planted-prepare-$(date +%s)")


def test_job_of_databricks_is_valid(folder: Path) -> None:
    files, printed = written(folder, "databricks", "--executors", 2)
    definition = json.loads(files["job.json"])
    job = JobSettings.from_dict(definition)
    assert job.as_dict() == definition  # the client drops other fields
    assert job.tasks is not None
    [task] = job.tasks
    assert task.spark_python_task is not None
    assert task.spark_python_task.python_file == f"{UPLOAD}/crossfade_on_spark.py"
    cluster = task.new_cluster
    assert cluster is not None
    assert (cluster.node_type_id, cluster.num_workers) == ("m5d.xlarge", 2)
    assert cluster.data_security_mode is DataSecurityMode.SINGLE_USER
    memory = {"spark.executor.memory": "5g", "spark.executor.memoryOverhead": "5g"}
    assert cluster.spark_conf == memory | {"spark.default.parallelism": "8"}
    assert printed[-2] == "create it: databricks jobs create --json '@my files/job.json'"


def test_packages_are_those_of_the_extras() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert sorted(PACKAGES) == sorted(each for each in extras["aws"] + extras["spark"] if "pyspark" not in each)


def test_invalid_options_of_spark_are_rejected(folder: Path) -> None:
    for word in ("--spark", "--upload", "--role", "--application"):
        words = list(plan("emr-serverless"))
        at = words.index(word)
        message = rejected_here("a service without what it needs", *words[:at], *words[at + 2 :], cwd=folder)
        assert message == f"--to emr-serverless: needs {word}"
    glue = plan("glue")
    for command in ("train job.yaml", f"prepare --events {OUT} --out {OUT}", "prepare '"):
        words = [*glue[:5], command, *glue[6:]]
        if command.endswith("'"):
            assert "No closing quotation" in crossfade_here(*words, cwd=folder).stderr
        else:
            rejected_here("a command that Spark does not prepare", *words, cwd=folder)
    rejected_here("a local path for a Spark service", *plan("glue", out="prepared"), cwd=folder)
    rejected_here("tasks that no executor holds", *plan("databricks", memory="9"), cwd=folder)
    rejected_here("CPUs that no executor has", *glue, "--cores", 5, cwd=folder)
    rejected_here("an option that Spark lacks", *glue[:5], f"{glue[5]} --order random", *glue[6:], cwd=folder)
    rejected_here("memory of a task without an array", *glue, "--memory", "1Gi", cwd=folder)
    with pytest.raises(SystemExit):  # of the command's own parser
        crossfade_here(*[*glue[:5], f"{glue[5]} --evnts", *glue[6:]], cwd=folder)
    assert not (folder / "my files").exists()
