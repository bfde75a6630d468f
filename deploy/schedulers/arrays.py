"""Files by which schedulers do a command in shards, as an array of tasks, and merge them when all are done.

    array = "recommend s3://music/runs/plays --all --shard auto/16 --out s3://music/recs"
    files, steps = array_files(job, SchedulerFiles.of(to="slurm", out="arrays", array=array), cores=4)

Slurm gets two batch scripts, Kubernetes an Indexed Job and a Job, and AWS Batch a job definition and what submits two
jobs. A task finds its number in the variables that ``ARRAY_VARIABLES`` names. Kubernetes and AWS Batch repeat one that
fails, unless its input is invalid; Slurm repeats only those whose node was lost.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from crossfade.base.machine import THREAD_VARIABLES
from crossfade.deploy.schedulers.kubernetes import (
    CONTAINER_SECURITY,
    POD_SECURITY,
    RUNS_FOLDER,
    image_of,
    metadata,
    resource_name,
    to_yaml,
)
from crossfade.deploy.schedulers.options import SchedulerFiles, ShardedCommand
from crossfade.deploy.schedulers.sizes import IN_PROCESS_CPUS
from crossfade.trainer.config.schema import JobConfig

_RETRIES = 5
_INVALID_INPUT = 2
_MIB = {"Mi": 1, "Gi": 1 << 10, "Ti": 1 << 20}


def array_files(job: JobConfig, options: SchedulerFiles, cores: int | None) -> tuple[dict[str, str], list[str]]:
    """Return the text of each file, by name, and what to do with them; ``job`` gives names and an image."""
    assert options.array is not None, "there is a command"
    command, cores = options.array, cores or IN_PROCESS_CPUS
    name = f"{resource_name(job)}-{command.shard[0]}"
    if options.to == "slurm":
        return _slurm(name, command, options, cores)
    if options.to == "kubernetes":
        return _kubernetes(name, job, command, options, cores)
    return _aws_batch(name, job, command, options, cores)


def _slurm(name: str, command: ShardedCommand, options: SchedulerFiles, cores: int) -> tuple[dict[str, str], list[str]]:
    partition = [] if options.partition is None else [f"partition={options.partition}"]
    common = [*partition, f"cpus-per-task={cores}", f"mem={_mib(options)}M", f"time={options.time}", "requeue"]
    kinds = {
        f"{name}.sbatch": (command.shard, [f"array=1-{command.shards}", f"output={name}-%A-%a.log"]),
        f"{name}-merge.sbatch": (command.merge, ["kill-on-invalid-dep=yes", f"output={name}-merge-%j.log"]),
    }
    files = {}
    for file, (words, more) in kinds.items():
        directives = [f"#SBATCH --{each}" for each in (f"job-name={file.removesuffix('.sbatch')}", *common, *more)]
        lines = ["#!/bin/bash", *directives, "", f'exec "${{CROSSFADE_COMMAND:-crossfade}}" {shlex.join(words)}']
        files[file] = "\n".join(lines) + "\n"
    shards, merge = (shlex.quote(f"{options.out}/{file}") for file in files)
    return files, [f"start it: sbatch --dependency=afterok:$(sbatch --parsable {shards}) {merge}"]


def _kubernetes(
    name: str, job: JobConfig, command: ShardedCommand, options: SchedulerFiles, cores: int
) -> tuple[dict[str, str], list[str]]:
    array: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": command.shards,
        "parallelism": command.shards,
        "backoffLimitPerIndex": _RETRIES,
    }
    kinds = {
        "shards": (name, command.shard, array),
        "merge": (f"{name}-merge", command.merge, {"backoffLimit": _RETRIES}),
    }
    rules = [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [_INVALID_INPUT]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    files = {}
    for kind, (resource, words, more) in kinds.items():
        pod = _pod(image_of(options, job), words, options, cores)
        spec = {**more, "podFailurePolicy": {"rules": rules}, "template": {"spec": pod}}
        space = {"namespace": options.namespace} if options.namespace else {}
        manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {**metadata(resource), **space}, "spec": spec}
        files[f"{kind}.yaml"] = to_yaml([manifest])
    where = f" --namespace {options.namespace}" if options.namespace else ""
    shards, merge = (shlex.quote(f"{options.out}/{file}") for file in files)
    wait = f"kubectl wait{where} --for=condition=complete --timeout=-1s job/{name}"
    return files, [
        f"start it: kubectl apply -f {shards}",
        f"merge when it is complete: {wait} && kubectl apply -f {merge}",
    ]


def _pod(image: str, words: tuple[str, ...], options: SchedulerFiles, cores: int) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "crossfade",
        "image": image,
        "args": list(words),
        "env": [{"name": name, "value": str(cores)} for name in THREAD_VARIABLES],
        **({"envFrom": [{"secretRef": {"name": options.secret}}]} if options.secret else {}),
        "resources": {
            "requests": {"cpu": str(cores), "memory": options.memory},
            "limits": {"memory": options.memory},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": CONTAINER_SECURITY,
    }
    volumes = {}
    if options.claim is not None:
        container["volumeMounts"] = [{"name": "runs", "mountPath": RUNS_FOLDER}]
        volumes = {"volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": options.claim}}]}
    account = {"serviceAccountName": options.service_account} if options.service_account else {}
    return {**account, "restartPolicy": "Never", "securityContext": POD_SECURITY, "containers": [container], **volumes}


def _aws_batch(
    name: str, job: JobConfig, command: ShardedCommand, options: SchedulerFiles, cores: int
) -> tuple[dict[str, str], list[str]]:
    requests = {"VCPU": str(cores), "MEMORY": str(_mib(options))}
    definition = {
        "jobDefinitionName": name,
        "type": "container",
        "containerProperties": {
            "image": image_of(options, job),
            "jobRoleArn": "JOB_ROLE_ARN",
            "resourceRequirements": [{"type": kind, "value": value} for kind, value in requests.items()],
            "environment": [{"name": variable, "value": str(cores)} for variable in THREAD_VARIABLES],
        },
        "retryStrategy": {
            "attempts": 1 + _RETRIES,
            "evaluateOnExit": [
                {"onExitCode": str(_INVALID_INPUT), "action": "EXIT"},
                {"onReason": "*", "action": "RETRY"},
            ],
        },
    }
    submitted = {"jobQueue": "JOB_QUEUE", "jobDefinition": name}
    array = {"arrayProperties": {"size": command.shards}}
    files = {
        "job-definition.json": definition,
        "shards.json": {"jobName": name, **submitted, **array, "containerOverrides": {"command": command.shard}},
        "merge.json": {"jobName": f"{name}-merge", **submitted, "containerOverrides": {"command": command.merge}},
    }
    register, shards, merge = (f"--cli-input-json {shlex.quote(f'file://{options.out}/{file}')}" for file in files)
    return {file: json.dumps(content, indent=1) + "\n" for file, content in files.items()}, [
        "replace JOB_ROLE_ARN and JOB_QUEUE in the files",
        f"register it: aws batch register-job-definition {register}",
        f"start it: shards=$(aws batch submit-job {shards} --query jobId --output text)",
        f"merge when it is complete: aws batch submit-job {merge} --depends-on jobId=$shards",
    ]


def _mib(options: SchedulerFiles) -> int:
    return int(options.memory[:-2]) * _MIB[options.memory[-2:]]
