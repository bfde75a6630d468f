"""Commands that stand in for ``srun`` and ``scontrol``, so that a batch script runs without Slurm.

    with network(2) as hosts:
        nodes = SlurmNodes(folder, hosts)
        nodes.start(script, job_id=7, variables={...})      # the process of the batch script, on the first host

This is not Slurm: nothing is queued, limited or signaled. Each host is a network namespace of this machine, named by
its address. ``srun`` starts one task on each node from ``--relative`` on and waits for them; ``scontrol show
hostnames`` expands the list of nodes, which is separated by spaces; ``scontrol requeue`` writes the job's ID to a file.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from net_hosts import Host
from running_command import Mark

_SRUN = """\
#!/bin/bash
relative=0
while [[ $1 == --* ]]; do
    [[ $1 == --relative=* ]] && relative=${1#*=}
    [[ $1 == --nodes=* ]] && count=${1#*=}
    shift
done
read -ra within <<< "$STAND_IN_WITHIN"
tasks=()
for ((task = 0; task < count; task++)); do
    SLURM_PROCID=$task nsenter "${within[relative + task]}" "$@" &
    tasks+=($!)
done
code=0
for task in "${tasks[@]}"; do
    wait "$task" || code=$?
done
exit $code
"""
_SCONTROL = """\
#!/bin/bash
case "$1 ${2-}" in
    "show hostnames") printf '%s\\n' $3 ;;
    requeue*) echo "$2" >> "$STAND_IN_REQUEUED" ;;
    *) exit 1 ;;
esac
"""


class SlurmNodes:
    """The nodes of one allocation."""

    def __init__(self, folder: Path, hosts: Sequence[Host]) -> None:
        self._bin, self._requeued, self._hosts = folder / "bin", folder / "requeued", hosts
        self._bin.mkdir()
        self._command("srun", _SRUN)
        self._command("scontrol", _SCONTROL)
        self._command("crossfade", f'#!/bin/sh\nexec {sys.executable} -P -m crossfade "$@"\n')

    def _command(self, name: str, text: str) -> None:
        (self._bin / name).write_text(text)
        (self._bin / name).chmod(0o755)

    def requeued(self) -> list[str]:
        """Return the IDs of requeued jobs."""
        return self._requeued.read_text().split() if self._requeued.exists() else []

    @contextmanager
    def start(self, script: Path, job_id: int, variables: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
        """Start the batch script on the first node; kill what still runs at the end."""
        mark = Mark()
        environment = mark.environment(variables)
        environment |= {
            "PATH": f"{self._bin}:{environment['PATH']}",
            "SLURM_JOB_ID": str(job_id),
            "SLURM_JOB_NUM_NODES": str(len(self._hosts)),
            "SLURM_JOB_NODELIST": " ".join(host.address for host in self._hosts),
            "SLURM_CPUS_PER_TASK": "1",
            "STAND_IN_WITHIN": " ".join(host.within[1] for host in self._hosts),
            "STAND_IN_REQUEUED": str(self._requeued),
        }
        process = subprocess.Popen(
            [*self._hosts[0].within, "bash", str(script)],
            cwd=self._bin.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            mark.kill()
            process.communicate()
