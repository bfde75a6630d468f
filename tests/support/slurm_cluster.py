"""Start a real Slurm cluster on this machine: a controller and nodes, each in a network namespace.

    with slurm_cluster(tmp_path, 2) as slurm:
        slurm.run("sbatch", "--wait", "job.sbatch")

Debian's packages slurm-wlm and munge have it. Nodes are called node1 and so on; the controller runs on the first.
Nothing limits the CPUs and memory of jobs.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from needs import package, root
from net_hosts import Host, network
from net_hosts import unavailable as namespaces_unavailable
from waiting import wait_until

START_SECONDS = 180.0
_TOOLS = ("munged", "slurmctld", "slurmd", "sbatch")
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost=node1(10.0.0.1)
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdParameters=config_overrides
MailProg=/bin/true
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def unavailable() -> str | None:
    """Return why no cluster can be started here; None if it can."""
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return package(missing[0], "slurm-wlm munge")
    reason = namespaces_unavailable()
    return None if reason is None else root(reason)


class SlurmCluster:
    """A running cluster."""

    def __init__(self, folder: Path, hosts: list[Host], stack: ExitStack) -> None:
        self._folder, self._hosts, self._stack = folder, hosts, stack
        (folder / "state").mkdir()
        names = [f"{host.address} node{number}" for number, host in enumerate(hosts, 1)]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names]) + "\n")
        nodes = [
            f"NodeName=node{number} NodeAddr={host.address} CPUs=16 RealMemory=65536"
            for number, host in enumerate(hosts, 1)
        ]
        (folder / "slurm.conf").write_text("\n".join([_CONFIGURATION.format(folder=folder), *nodes]) + "\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        folder.chmod(0o755)
        paths = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "key-file": "key"}
        self._daemon(["munged", "--foreground", "--force", *(f"--{k}={folder}/munge.{v}" for k, v in paths.items())])
        wait_until((folder / "munge.socket").exists, "munged")
        self._daemon(self._on(1, "slurmctld", "-D"))
        for number in range(1, len(hosts) + 1):
            self._daemon(self._on(number, "slurmd", "-D"))
        wait_until(self._is_up, f"idle nodes: {folder}/daemons.log")

    def _on(self, number: int, *command: str) -> list[str]:
        """Return ``command`` as it runs on a node, with the node's name and those of the others."""
        prepare = f'hostname node{number} && mount --bind {self._folder}/hosts /etc/hosts && exec "$@"'
        within = self._hosts[number - 1].within
        return [*within, "unshare", "--uts", "--mount", "sh", "-c", prepare, "sh", *command]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self._folder / "slurm.conf")}

    def _daemon(self, command: list[str]) -> None:
        with (self._folder / "daemons.log").open("a") as log:
            process = subprocess.Popen(command, env=self._environment(), stdout=log, stderr=log)
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)

    def _is_up(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).stdout.split()
        return states == ["idle"] * len(self._hosts)

    def run(
        self, *command: str, variables: Mapping[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` on the first node."""
        environment = {**self._environment(), **(variables or {})}
        return subprocess.run(
            self._on(1, *command), env=environment, cwd=self._folder, capture_output=True, text=True, check=check
        )


@contextmanager
def slurm_cluster(folder: Path, nodes: int) -> Iterator[SlurmCluster]:
    """Run a cluster of ``nodes`` nodes while the context lasts."""
    with network(nodes) as hosts, ExitStack() as stack:
        yield SlurmCluster(folder, hosts, stack)
