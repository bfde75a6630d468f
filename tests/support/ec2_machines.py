"""Processes in place of moto's instances: each running instance runs its user data here as a real script.

with running_machines(aws, folder) as machines:
    crossfade("submit", "ec2", "job.yaml", ..., cwd=folder, variables=aws.variables)
    machines.of(1).metadata.interrupt()           # publishes an interruption notice for host 1
    machines.of(1).calls                          # how docker and shutdown were called

Each machine has a loopback address and a metadata service of its own, which provides the credentials. docker and
shutdown are small scripts that record their calls: 'docker run' runs Crossfade itself, with the machine's folder in
place of the container's volume, and 'shutdown -h now' terminates the instance.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from aws_server import AwsServer
from fake_imds import Metadata, running_metadata
from object_store import ACCESS_KEY, SECRET_KEY
from running_command import Mark
from waiting import MAX_SECONDS, wait_until

_DOCKER = """#!/bin/bash
printf '%s\\n' "docker $*" >>"$MACHINE/calls"
case $1 in
    login) cat >"$MACHINE/password" ;;
    pull) [ ! -e "$MACHINE/../no-image" ] || { echo 'manifest unknown' >&2; exit 1; } ;;
    run)
        shift
        while [ "$1" = --rm ] || [[ $1 == --* ]]; do
            case $1 in --rm) shift ;; --env) export "$2"; shift 2 ;; *) shift 2 ;; esac
        done
        shift
        exec "$PYTHON" -P -m crossfade "${@/#\\/runs\\//$MACHINE/}"
        ;;
esac
"""
_SHUTDOWN = """#!/bin/bash
printf '%s\\n' "shutdown $*" >>"$MACHINE/calls"
[ "$2" != now ] || touch "$MACHINE/off"
"""
_RECORDED = """#!/bin/bash
printf '%s\\n' "$(basename "$0") $*" >>"$MACHINE/calls"
"""


class Machine:
    """One machine."""

    def __init__(self, instance: dict[str, Any], script: str, number: int, folder: Path, metadata: Metadata) -> None:
        self.id: str = instance["InstanceId"]
        self.number, self.folder, self.metadata = number, folder, metadata
        self.index: int = instance["AmiLaunchIndex"]
        self.address = f"127.0.1.{number}"
        self.script = script
        self.mark = Mark()
        self.process: subprocess.Popen[bytes] | None = None
        # Credentials of the S3 server, which checks signatures and does not support session tokens.
        credentials = {"AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Token": "", "Code": "Success"}
        credentials |= {"Type": "AWS-HMAC", "LastUpdated": "2020-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z"}
        role = "the-role"  # moto returns the profile of the first instance only
        metadata.values |= {
            "ami-launch-index": str(self.index),
            "instance-id": self.id,
            "local-ipv4": self.address,
            "iam/security-credentials": role,
            "placement/availability-zone": "us-east-1a",
            f"iam/security-credentials/{role}": json.dumps(credentials, indent=2),
        }

    def boot(self, aws: AwsServer, variables: dict[str, str]) -> None:
        """Start the script."""
        self.folder.mkdir()
        path = self.folder / "user-data"
        path.write_text(self.script)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment |= {
            "PATH": f"{self.folder.parent / 'bin'}:{os.environ['PATH']}",
            "MACHINE": str(self.folder),
            "pause": "0",
        }
        environment |= {"PYTHON": sys.executable, "AWS_ENDPOINT_URL": aws.endpoint, "AWS_CONFIG_FILE": os.devnull}
        environment |= {"AWS_SHARED_CREDENTIALS_FILE": os.devnull, **self.metadata.variables, **variables}
        with (self.folder / "console").open("wb") as console:
            self.process = subprocess.Popen(
                ["bash", str(path)],
                env=self.mark.environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_off(self) -> bool:
        """Return whether the machine has shut down."""
        return (self.folder / "off").exists()

    @property
    def console(self) -> str:
        """Return the output of the machine's script."""
        return (self.folder / "console").read_text(errors="replace")

    @property
    def calls(self) -> list[str]:
        """Return the command lines of docker, shutdown and systemctl so far."""
        with suppress(FileNotFoundError):
            return (self.folder / "calls").read_text().splitlines()
        return []


class Machines:
    """All machines: they start and stop with moto's instances."""

    def __init__(self, aws: AwsServer, folder: Path, variables: dict[str, str]) -> None:
        self._aws, self._folder, self._variables = aws, folder, variables
        self.all: list[Machine] = []
        self._opened = ExitStack()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None
        (folder / "bin").mkdir(parents=True)
        for name, text in (("docker", _DOCKER), ("shutdown", _SHUTDOWN), ("systemctl", _RECORDED)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self._thread.start()

    def of(self, index: int, seconds: float = MAX_SECONDS) -> Machine:
        """Wait for host ``index`` and return its newest machine."""
        wait_until(
            lambda: self._check() or any(entry.host == index for entry in self._hosts()),
            f"host {index}",
            seconds=seconds,
        )
        return [entry.machine for entry in self._hosts() if entry.host == index][-1]

    def _hosts(self) -> list["_Numbered"]:
        return [_Numbered(int(_setting(machine.script, "first")) + machine.index, machine) for machine in self.all]

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._run_once()
                time.sleep(0.2)
        except BaseException as error:
            self.error = error
            raise

    def _run_once(self) -> None:
        ec2 = self._aws.client("ec2")
        known = {machine.id: machine for machine in self.all}
        for reservation in ec2.describe_instances()["Reservations"]:
            for instance in reservation["Instances"]:
                machine = known.get(instance["InstanceId"])
                if machine is None and instance["State"]["Name"] == "running":
                    self._start(instance)
                elif machine is not None and instance["State"]["Name"] in {"shutting-down", "terminated"}:
                    machine.mark.kill()
                elif machine is not None and machine.is_off:
                    ec2.terminate_instances(InstanceIds=[machine.id])

    def _start(self, instance: dict[str, Any]) -> None:
        import base64

        answer = self._aws.client("ec2").describe_instance_attribute(
            InstanceId=instance["InstanceId"], Attribute="userData"
        )
        script = base64.b64decode(answer["UserData"]["Value"]).decode()
        metadata = self._opened.enter_context(running_metadata())
        number = len(self.all) + 1
        machine = Machine(instance, script, number, self._folder / f"machine-{number}", metadata)
        machine.boot(self._aws, self._variables)
        self.all.append(machine)

    def close(self) -> None:
        """Stop all machines."""
        self._stopped.set()
        self._thread.join()
        for machine in self.all:
            machine.mark.kill()
            assert machine.process is not None
            machine.process.wait()
        self._opened.close()
        shutil.rmtree(self._folder / "bin")


class _Numbered:
    def __init__(self, host: int, machine: Machine) -> None:
        self.host, self.machine = host, machine


def _setting(script: str, name: str) -> str:
    [line] = [line for line in script.splitlines() if line.startswith(f"{name}=")]
    return line.partition("=")[2].strip("'")


@contextmanager
def running_machines(aws: AwsServer, folder: Path, variables: dict[str, str] | None = None) -> Iterator[Machines]:
    """Run machines in ``folder`` while the context lasts, with ``variables`` in their environment."""
    machines = Machines(aws, folder, variables or {})
    try:
        yield machines
    finally:
        machines.close()
