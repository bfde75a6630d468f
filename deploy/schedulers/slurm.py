"""A batch script by which Slurm runs a job: the coordinator on the first node, and an agent on each other one.

files = slurm_files(job, size_hosts(job, plan), SchedulerFiles(out=folder))      # text by file name
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence

from crossfade.deploy.schedulers.options import SchedulerFiles
from crossfade.deploy.schedulers.sizes import HostSize, requested_gpus
from crossfade.deploy.topology import UNPLACED
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.run_folder import default_run_dir

EXIT_SECONDS = 90
"""Time for roles to end after the checkpoint, and for Slurm, which sends signals up to a minute late."""
JOB_FILE = "job.yaml"
_SCRIPT = r"""
set -u
crossfade=${CROSSFADE_COMMAND:-crossfade} # on all nodes, such as /shared/venv/bin/crossfade
options=()

# Of several nodes, this one coordinates. Its address is that on the network of the others.
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    peer=$(getent ahostsv4 "${nodes[1]}" | awk '{ print $1; exit }')
    address=$(ip -4 -o route get "$peer" | sed -n 's/.* src \([0-9.]*\).*/\1/p')
    join=$address:$((20000 + SLURM_JOB_ID % 10000))
    options=(--set "cluster.host=$address" --set "cluster.coordinator_address=$join")
    CROSSFADE_TOKEN=$(od -A n -N 32 -t x1 /dev/urandom | tr -d ' \n')
    export CROSSFADE_TOKEN
fi
"$crossfade" train "$job" --run-dir "$run_dir" --resume --progress lines "${options[@]}" &
coordinator=$!

# A signal interrupts 'wait'; the coordinator ends after a checkpoint.
requeue= signaled=yes code=0
trap 'signaled=yes requeue=yes; kill -TERM "$coordinator"' USR1
trap 'signaled=yes; kill -TERM "$coordinator"' TERM

# Each other node runs an agent, again if it is killed. Without them, the coordinator would wait.
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    (
        srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --relative=1 \
            --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 --wait=0 --label \
            bash -c 'while :; do
                "$@"
                code=$?
                case $code in 0 | 130 | 143) exit 0 ;; 1 | 2) exit $code ;; esac
            done' agent "$crossfade" agent --join "$join" --run-dir "$run_dir" ||
            { sleep 30 && kill -TERM "$coordinator" 2> /dev/null; }
    ) &
    agents=$!
fi

while [ "$signaled" ]; do
    signaled=
    wait "$coordinator"
    status=$?
    [ "$status" -eq 127 ] || code=$status
done
# The agents have left, except one that cannot reach this node, which the end of this script ends.
[ "${agents-}" ] && timeout 60 tail --pid="$agents" -f /dev/null
[ "$requeue" ] && [ "$code" -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
"""


def on_slurm(job: JobConfig) -> JobConfig:
    """Return ``job`` as the nodes run it: they share its run folder, and the script sets their addresses.

    Raises:
        InputError: it is no valid job.
    """
    values = job.with_absolute_paths().model_dump(mode="json")
    values["cluster"] |= {**UNPLACED, "one_role_per_host": False, "shared_run_dir": True}
    return check_job(values, "the job on Slurm")


def slurm_files(job: JobConfig, sizes: Sequence[HostSize], options: SchedulerFiles) -> dict[str, str]:
    """Return the batch script and the job file, by name; ``job`` is one that ``on_slurm`` returned.

    All nodes share the folders of the files and of the run.
    """
    assert options.out is not None, "the files have a folder"
    run_dir = options.run_dir or default_run_dir(job)
    variables = {"job": options.out.absolute() / JOB_FILE, "run_dir": run_dir.absolute()}
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{directive}" for directive in _directives(job, sizes, options)),
        "",
        f"# Trains the job {job.name}, and continues it when Slurm starts this script again.",
        *(f"{name}={shlex.quote(str(value))}" for name, value in variables.items()),
    ]
    return {f"{job.name}.sbatch": "\n".join(lines) + _SCRIPT, JOB_FILE: job.to_yaml()}


def _directives(job: JobConfig, sizes: Sequence[HostSize], options: SchedulerFiles) -> Iterator[str]:
    yield f"job-name={job.name}"
    if options.partition is not None:
        yield f"partition={options.partition}"
    yield f"nodes={len(sizes)}"
    yield "ntasks-per-node=1"
    yield f"cpus-per-task={math.ceil(max(size.cpus for size in sizes))}"
    yield f"mem={max(size.memory_mib for size in sizes)}M"
    if gpus := requested_gpus(job):
        yield f"gpus-per-node={gpus}"
    yield f"time={options.time}"
    yield f"signal=B:USR1@{math.ceil(job.cluster.grace_period_seconds) + EXIT_SECONDS}"
    yield "requeue"
    yield "open-mode=append"
    yield f"output={job.name}-%j.log"
