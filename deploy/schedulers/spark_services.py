"""Files by which managed Spark services prepare a dataset: a script, the service's own job definition, and packages.

    files, steps = spark_files(job, SchedulerFiles.of(to="glue", out="glue", …), preparation, cores=4)

A service gets as many executors as asked for, each alone on a worker: the smallest whose memory holds Java and a
task of the preparation on each CPU. Its tasks reach S3 with the role that the options name.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossfade.base.errors import OptionError, option_named
from crossfade.deploy.schedulers.kubernetes import resource_name
from crossfade.deploy.schedulers.options import SPARK_EXAMPLE, SchedulerFiles
from crossfade.deploy.schedulers.sizes import IN_PROCESS_CPUS
from crossfade.kvstore import __version__
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.prepare.options import PrepareOptions

PACKAGES = ("boto3>=1.40", "pandas>=2.3", "setuptools>=77")
"""What the extras ``aws`` and ``spark`` need beside PySpark, which a service has."""
WHEEL = f"crossfade-{__version__}-py3-none-any.whl"
SCRIPT, DEFINITION = "crossfade_on_spark.py", "job.json"

_CPUS = (4, 8, 16)
_WORKERS: Mapping[str, Mapping[float, str]] = {
    "emr-serverless": {4: "", 7.5: ""},
    "glue": {4: "G.{}X", 8: "R.{}X"},
    "sagemaker-processing": {4: "ml.m5.{}xlarge", 8: "ml.r5.{}xlarge"},
    "databricks": {4: "m5d.{}xlarge", 8: "r5d.{}xlarge"},
}
"""What the workers of a service are called, by their GiB of memory for each CPU; the number is of four CPUs."""
_DEFAULT_TASK_GIB, _PYTHON_GIB, _LEAST_JAVA_GIB = 0.5, 0.75, 0.5
"""The memory of DuckDB in a task by default, of the other packages beside it, and of Java for each task."""
_CONTAINER_INPUT = "/opt/ml/processing/input"
"""Where SageMaker puts the files, of which its image of Spark reads conf/configuration.json."""
_DISK_GB = 200


@dataclass(frozen=True)
class _Job:
    """What the definition of a job is made of."""

    name: str
    options: SchedulerFiles
    worker: str
    cores: int
    settings: Mapping[str, str]
    """What is set in Spark: how executors divide their memory, and how many tasks they run at a time."""

    @property
    def upload(self) -> str:
        """The address of the files on S3."""
        return (self.options.upload or "").rstrip("/")

    def local(self, file: str = "", before: str = "") -> str:
        """Return the path of a file that is written, or of their folder, as a shell takes it."""
        return shlex.quote(f"{before}{self.options.out}/{file}".rstrip("/"))


def spark_files(
    job: JobConfig, options: SchedulerFiles, preparation: PrepareOptions, cores: int | None
) -> tuple[dict[str, str], list[str]]:
    """Return the text of each file, by name, and what to do with them; ``job`` gives the name.

    Raises:
        OptionError: the command is no preparation on Spark, from and to S3, or a worker cannot hold its tasks.
    """
    assert options.to is not None, "there is a service"
    assert options.spark is not None, "there is a command"
    _check(options.spark, preparation)
    cores = cores or IN_PROCESS_CPUS
    worker, settings = _size(options.to, cores, preparation.memory or _DEFAULT_TASK_GIB)
    # Without it, Spark counts the executors that have started when it is asked.
    settings["spark.default.parallelism"] = str(cores * options.executors)
    described = _Job(f"{resource_name(job)}-prepare", options, worker, cores, settings)
    definition, files, steps = _SERVICES[options.to](described)
    script = entry_script(shlex.split(options.spark))
    return {SCRIPT: script, DEFINITION: json.dumps(definition, indent=1) + "\n", **files}, [
        f"build the package, in a checkout: python -m build --wheel --outdir {described.local()}",
        *([] if "Dockerfile" not in files else [_archive_step(described)]),
        f"upload all: aws s3 cp --recursive {described.local()} {shlex.quote(described.upload)}",
        *steps,
    ]


def entry_script(words: Sequence[str]) -> str:
    """Return a script that runs a command of crossfade.

    The script holds the arguments, since Glue passes further ones to it. Services may count an exception that ends
    a process as a failure even if its exit code is 0.
    """
    return f"from crossfade.cli.main import main\n\nif code := main({[*words]!r}):\n    raise SystemExit(code)\n"


def _check(command: str, preparation: PrepareOptions) -> None:
    if preparation.engine != "spark" or preparation.sample is not None:
        raise OptionError("spark", found=command, expected=f"a command such as '{SPARK_EXAMPLE}'")
    from crossfade.trainer.prepare.pipeline import check_for_spark  # which imports DuckDB

    check_for_spark(preparation)
    places = [preparation.out, *preparation.train, *preparation.valid, *preparation.test]
    places += [str(file.path) for file in preparation.names.values()]
    places += [str(file.path) for file in (*preparation.features, *preparation.content)]
    for place in (*places, *filter(None, [preparation.base])):
        if not str(place).startswith("s3://"):
            expected = "an s3:// address, since the machines of a service have no folder in common"
            raise OptionError("spark", found=place, expected=expected)


def _size(service: str, cores: int, task_gib: float) -> tuple[str, dict[str, str]]:
    """Return the smallest worker with so many CPUs that holds a task on each, and how an executor divides its memory.

    Raises:
        OptionError: there is none.
    """
    if cores not in _CPUS:
        expected = f"4, 8, or 16 with {option_named('to', service)}"
        raise OptionError("cores", found=cores, expected=expected)
    python_gib = math.ceil(cores * (task_gib + _PYTHON_GIB))
    for cpu_gib, worker in _WORKERS[service].items():
        gib = cores * cpu_gib
        # EMR Serverless counts what executors get; elsewhere, the system and the service have a part of the worker.
        java_gib = int(gib if not worker else 0.9 * gib - 4) - python_gib
        if java_gib >= cores * _LEAST_JAVA_GIB:
            memory = {"spark.executor.memory": f"{java_gib}g", "spark.executor.memoryOverhead": f"{python_gib}g"}
            return worker.format(cores // 4).replace(".1xlarge", ".xlarge"), memory
    problem = f"{cores} tasks of {task_gib:g} GiB at a time do not fit the memory of an executor"
    raise OptionError("spark", problem=problem, fix=f"lower {option_named('memory')} in the command")


_Files = tuple[dict[str, Any], dict[str, str], list[str]]
"""The definition of a job, further files, and how to start it."""


def _emr_serverless(job: _Job) -> _Files:
    python = "./environment/bin/python"
    settings = {
        "spark.archives": f"{job.upload}/environment.tar.gz#environment",
        "spark.emr-serverless.driverEnv.PYSPARK_DRIVER_PYTHON": python,
        "spark.emr-serverless.driverEnv.PYSPARK_PYTHON": python,
        "spark.executorEnv.PYSPARK_PYTHON": python,
        "spark.dynamicAllocation.enabled": "false",
        "spark.executor.instances": str(job.options.executors),
        "spark.executor.cores": str(job.cores),
        **job.settings,
        "spark.emr-serverless.executor.disk": f"{_DISK_GB}G",
    }
    submitted = {"entryPoint": f"{job.upload}/{SCRIPT}", "sparkSubmitParameters": _as_words(settings)}
    definition = {
        "name": job.name,
        "applicationId": job.options.application,
        "executionRoleArn": job.options.role,
        "jobDriver": {"sparkSubmit": submitted},
    }
    dockerfile = f"""\
FROM public.ecr.aws/amazonlinux/amazonlinux:2023 AS build
RUN dnf install -y python3.11 tar gzip
COPY {WHEEL} /
RUN python3.11 -m venv /environment \\
    && /environment/bin/pip install /{WHEEL} {shlex.join(PACKAGES)} \\
    && tar -czf /environment.tar.gz -C /environment .
FROM scratch
COPY --from=build /environment.tar.gz /
"""
    start = f"start it: aws emr-serverless start-job-run --cli-input-json {_input(job)}"
    return definition, {"Dockerfile": dockerfile}, [start]


def _archive_step(job: _Job) -> str:
    return f"build its environment: docker build --platform linux/amd64 --output {job.local()} {job.local()}"


def _glue(job: _Job) -> _Files:
    definition = {
        "Name": job.name,
        "Role": job.options.role,
        "GlueVersion": "5.0",  # Spark 3.5 and Python 3.11
        "WorkerType": job.worker,
        "NumberOfWorkers": job.options.executors + 1,  # the driver has one
        "Command": {"Name": "glueetl", "ScriptLocation": f"{job.upload}/{SCRIPT}", "PythonVersion": "3"},
        "DefaultArguments": {
            "--additional-python-modules": ",".join((f"{job.upload}/{WHEEL}", *PACKAGES)),
            "--conf": _as_words(job.settings).removeprefix("--conf "),
        },
    }
    create = f"create it: aws glue create-job --cli-input-json {_input(job)}"
    return definition, {}, [create, f"start it: aws glue start-job-run --job-name {job.name}"]


def _sagemaker_processing(job: _Job) -> _Files:
    install = f"python3 -m pip install {_CONTAINER_INPUT}/{WHEEL} {shlex.join(PACKAGES)}"
    definition = {
        "ProcessingJobName": job.name,
        "RoleArn": job.options.role,
        "AppSpecification": {
            "ImageUri": job.options.image,
            "ContainerEntrypoint": ["bash", "-c", f"{install} && exec smspark-submit {_CONTAINER_INPUT}/{SCRIPT}"],
        },
        "ProcessingInputs": [
            {
                "InputName": "files",
                "S3Input": {
                    "S3Uri": f"{job.upload}/",
                    "LocalPath": _CONTAINER_INPUT,
                    "S3DataType": "S3Prefix",
                    "S3InputMode": "File",
                },
            }
        ],
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": job.options.executors,
                "InstanceType": job.worker,
                "VolumeSizeInGB": _DISK_GB,
            }
        },
    }
    settings = {**job.settings, "spark.driver.memory": "2g"}  # by default, the image gives the driver nearly all
    configuration = [{"Classification": "spark-defaults", "Properties": settings}]
    files = {"conf/configuration.json": json.dumps(configuration, indent=1) + "\n"}
    start = f"start it: aws sagemaker create-processing-job --cli-input-json {_input(job)}"
    return definition, files, [f"{start} --processing-job-name {job.name}-$(date +%s)"]


def _databricks(job: _Job) -> _Files:
    cluster = {
        "spark_version": "16.4.x-scala2.12",  # Spark 3.5 and Python 3.12
        "node_type_id": job.worker,
        "num_workers": job.options.executors,
        "data_security_mode": "SINGLE_USER",  # the other modes have no SparkContext
        "aws_attributes": {"instance_profile_arn": job.options.role},
        "spark_conf": job.settings,
    }
    task = {
        "task_key": "prepare",
        "spark_python_task": {"python_file": f"{job.upload}/{SCRIPT}"},
        "libraries": [{"whl": f"{job.upload}/{WHEEL}"}, *({"pypi": {"package": package}} for package in PACKAGES)],
        "new_cluster": cluster,
    }
    create = f"create it: databricks jobs create --json {job.local(DEFINITION, '@')}"
    start = "start it: databricks jobs run-now JOB_ID, with the ID that was printed"
    return {"name": job.name, "tasks": [task]}, {}, [create, start]


def _as_words(settings: Mapping[str, str]) -> str:
    return " ".join(f"--conf {name}={value}" for name, value in settings.items())


def _input(job: _Job) -> str:
    return job.local(DEFINITION, "file://")


_SERVICES: Mapping[str, Callable[[_Job], _Files]] = {
    "emr-serverless": _emr_serverless,
    "glue": _glue,
    "sagemaker-processing": _sagemaker_processing,
    "databricks": _databricks,
}
