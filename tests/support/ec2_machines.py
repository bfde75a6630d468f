"""Processes in place of moto's instances: each running instance runs its user data here as a real script.

with running_machines(aws, folder) as machines:
    crossfade("submit", "ec2", "job.yaml", ..., cwd=folder, variables=aws.variables)
    machines.of("head").metadata.interrupt()      # publishes an interruption notice for the head
    machines.of("head").calls                     # how docker and shutdown were called

Each machine has a loopback address and a metadata service of its own, which provides the credentials. docker and
shutdown are small scripts that record their calls: 'docker run' runs Crossfade itself, with the machine's folder in
place of the container's volume, and 'shutdown -h now' terminates the instance. As Docker's driver awslogs does, a
thread sends the output of containers to CloudWatch.
"""

import base64
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

from aws_server import AwsServer, write_log
from fake_imds import Metadata, running_metadata
from object_store import ACCESS_KEY, SECRET_KEY
from running_command import Mark
from waiting import MAX_SECONDS, wait_until

from crossfade.deploy.aws.ec2.stack import LOG_GROUP

_DOCKER = """#!/bin/bash
printf '%s\\n' "docker $*" >>"$MACHINE/calls"
case $1 in
    login) cat >"$MACHINE/password" ;;
    run)
        shift
        while [ "$1" = --rm ] || [[ $1 == --* ]]; do
            case $1=$2 in
                --rm*) shift; continue ;;
                --env=*) export "$2" ;;
                --log-opt=awslogs-stream=*) printf %s "${2#*=}" >"$MACHINE/stream" ;;
            esac
            shift 2
        done
        shift
        exec "$PYTHON" -P -m crossfade "${@/#\\/runs\\//$MACHINE/}" > >(tee "$MACHINE/output") 2>&1
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
        self.number, self.folder, self.metadata, self.script = number, folder, metadata, script
        [self.role] = [tag["Value"] for tag in instance["Tags"] if tag["Key"] == "crossfade:role"]
        self.is_killed = False
        self.sent_bytes = 0
        self.mark = Mark()
        self.process: subprocess.Popen[bytes] | None = None
        # Credentials of the S3 server, which checks signatures and does not support session tokens.
        credentials = {"AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Token": "", "Code": "Success"}
        credentials |= {"Type": "AWS-HMAC", "LastUpdated": "2020-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z"}
        role = "the-role"  # moto returns the profile of the first instance only
        metadata.values |= {
            "tags/instance/crossfade:role": self.role,
            "instance-id": self.id,
            "local-ipv4": f"127.0.1.{number}",
            "iam/security-credentials": role,
            "placement/availability-zone": "us-east-1a",
            f"iam/security-credentials/{role}": json.dumps(credentials, indent=2),
        }

    def boot(self, aws: AwsServer, variables: dict[str, str]) -> None:
        """Start the script."""
        self.folder.mkdir()
        path = self.folder / "user-data"
        path.write_text(self.script)
        inherited = self.mark.environment()
        environment = {name: value for name, value in inherited.items() if not name.startswith("AWS_")}
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
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop_container(self) -> None:
        """Send the command of its container SIGTERM."""
        [process] = [each for each in self.mark.processes() if {"-m", "ec2-host"} <= {*each.cmdline()}]
        process.terminate()

    @property
    def is_off(self) -> bool:
        """Return whether the machine has shut down."""
        return (self.folder / "off").exists()

    @property
    def console(self) -> str:
        """Return the output of the machine's script."""
        return (self.folder / "console").read_text(errors="replace")

    def new_lines(self) -> list[str]:
        """Return the complete lines that its container has written since the last call."""
        with suppress(FileNotFoundError), (self.folder / "output").open("rb") as output:
            output.seek(self.sent_bytes)
            whole, end, _ = output.read().rpartition(b"\n")
            self.sent_bytes += len(whole + end)
            return whole.decode().splitlines()
        return []

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

    def of(self, role: str, seconds: float = MAX_SECONDS) -> Machine:
        """Wait for a host with this role, and return the newest machine that has it."""

        def newest() -> list[Machine]:
            if self.error is not None:
                raise self.error
            return [machine for machine in self.all if machine.role == role][-1:]

        wait_until(newest, f"a {role}", seconds=seconds)
        return newest()[0]

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._run_once()
                for machine in self.all:
                    if lines := machine.new_lines():
                        write_log(self._aws, LOG_GROUP, (machine.folder / "stream").read_text(), *lines)
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
                elif machine is None or machine.is_killed:
                    continue
                elif instance["State"]["Name"] in {"shutting-down", "terminated"}:
                    machine.mark.kill()
                    machine.is_killed = not machine.mark.processes()
                elif machine.is_off:
                    ec2.terminate_instances(InstanceIds=[machine.id])

    def _start(self, instance: dict[str, Any]) -> None:
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


@contextmanager
def running_machines(aws: AwsServer, folder: Path, variables: dict[str, str] | None = None) -> Iterator[Machines]:
    """Run machines in ``folder`` while the context lasts, with ``variables`` in their environment."""
    machines = Machines(aws, folder, variables or {})
    try:
        yield machines
    finally:
        machines.close()
