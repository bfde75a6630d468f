"""Print what calls ``crossfade refresh`` at intervals: a line for cron, a CronJob, or a schedule of EventBridge.

print(schedule_text("kubernetes", config, Path("music.yaml"), seconds=3600.0))

Calls may overlap: a second one finds the service locked, and ends. So an interval may be shorter than an increment.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from crossfade.base.errors import InputError, OptionError
from crossfade.deploy.refresh.options import Scheduler
from crossfade.deploy.refresh.service_file import ServiceConfig

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0
_CONFIG_FOLDER, _SERVICES_FOLDER = "/config", "/services"
_GRACE_SECONDS = 120
"""Time for a checkpoint after a signal."""


def schedule_text(scheduler: Scheduler, config: ServiceConfig, file: Path, seconds: float) -> str:
    """Return what makes ``scheduler`` call ``crossfade refresh`` on ``file`` every ``seconds``.

    Raises:
        OptionError: the scheduler has no such interval.
        InputError: the service must be on S3, and is not.
    """
    if scheduler == "cron":
        command = f"cd {Path.cwd()} && .venv/bin/crossfade refresh {file}"
        return f"{_cron_times(seconds)}  {command} >> {config.name}-refresh.log 2>&1\n"
    if scheduler == "kubernetes":
        return _cron_job(config, file, _cron_times(seconds))
    return _eventbridge(config, file, seconds)


def _cron_times(seconds: float) -> str:
    """Return the five fields of a line of cron.

    Raises:
        OptionError: the interval does not divide an hour in minutes, or a day in hours.
    """
    minutes, hours = seconds / _MINUTE, seconds / _HOUR
    if minutes in range(1, 31) and 60 % minutes == 0:
        return "* * * * *" if minutes == 1 else f"*/{minutes:.0f} * * * *"
    if hours in range(1, 13) and 24 % hours == 0:
        return "0 * * * *" if hours == 1 else f"0 */{hours:.0f} * * *"
    if seconds == _DAY:
        return "0 0 * * *"
    raise OptionError(
        "every",
        problem="cron has no such interval",
        expected="1, 2, 3, 4, 5, 6, 10, 12, 15, 20, or 30 minutes, 1, 2, 3, 4, 6, 8, or 12 hours, or a day",
    )


def _cron_job(config: ServiceConfig, file: Path, times: str) -> str:
    """Return a CronJob that mounts the file of the service, and the volume of the service unless that is on S3."""
    mounts = [{"name": "config", "mountPath": _CONFIG_FOLDER}]
    volumes: list[object] = [{"name": "config", "configMap": {"name": config.name}}]
    if config.remote is None:
        mounts.append({"name": "services", "mountPath": _SERVICES_FOLDER})
        volumes.append({"name": "services", "persistentVolumeClaim": {"claimName": "services"}})
    container = {
        "name": "refresh",
        "image": "crossfade:cpu",
        "args": ["refresh", f"{_CONFIG_FOLDER}/{file.name}"],
        "resources": {"requests": {"cpu": "4", "memory": "8Gi"}, "limits": {"memory": "8Gi"}},
        "volumeMounts": mounts,
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "containers": [container],
        "volumes": volumes,
    }
    job = {"backoffLimit": 0, "template": {"spec": pod}}  # the next call continues
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": f"{config.name}-refresh"},
        "spec": {"schedule": times, "concurrencyPolicy": "Forbid", "jobTemplate": {"spec": job}},
    }
    return yaml.safe_dump(manifest, sort_keys=False)


def _eventbridge(config: ServiceConfig, file: Path, seconds: float) -> str:
    """Return the input of ``aws scheduler create-schedule`` that starts a Fargate task.

    Raises:
        OptionError: the interval is not whole minutes.
        InputError: the service is not on S3, and the disk of a task is deleted with it.
    """
    if config.remote is None:
        raise InputError(
            f"{file}: remote: is missing: the disk of a task is deleted with it, so keep the service on S3"
        )
    minutes = seconds / _MINUTE
    if minutes < 1 or minutes != int(minutes):
        raise OptionError("every", problem="EventBridge counts in minutes", expected="whole minutes")
    overrides = {"containerOverrides": [{"name": "refresh", "command": ["refresh", f"{_CONFIG_FOLDER}/{file.name}"]}]}
    network = {"Subnets": ["SUBNET"], "SecurityGroups": ["SECURITY_GROUP"], "AssignPublicIp": "DISABLED"}
    task = {
        "TaskDefinitionArn": "TASK_DEFINITION_ARN",
        "TaskCount": 1,
        "LaunchType": "FARGATE",
        "NetworkConfiguration": {"awsvpcConfiguration": network},
    }
    schedule = {
        "Name": f"{config.name}-refresh",
        "ScheduleExpression": f"rate({minutes:.0f} minute{'' if minutes == 1 else 's'})",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "Target": {
            "Arn": "CLUSTER_ARN",
            "RoleArn": "ROLE_ARN",
            "EcsParameters": task,
            "Input": json.dumps(overrides),
            "RetryPolicy": {"MaximumRetryAttempts": 0},
        },
    }
    return json.dumps(schedule, indent=1) + "\n"
