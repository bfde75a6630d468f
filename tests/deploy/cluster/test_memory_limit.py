"""A distributed run whose server the kernel kills for lack of memory, in a cgroup with a limit."""

import json
import os
import re
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from fault_runs import ON_ONE_SERVER
from memory_cgroup import memory_cgroup
from paced_training import paced
from running_command import messages

pytestmark = pytest.mark.cluster

_HUNGRY = """
import os, sys, threading, time

def eat():
    while not os.path.exists("eat"):
        time.sleep(0.05)
    open("/proc/self/oom_score_adj", "w").write("1000")
    eaten = []
    while True:
        eaten.append(bytearray(2**24))

if "server" in sys.orig_argv:
    threading.Thread(target=eat, daemon=True).start()
"""
"""In a server: take memory without end once the file ``eat`` exists, as the process that the kernel kills first."""


def test_server_killed_for_lack_of_memory_ends_the_run_with_that_cause(tmp_path: Path) -> None:
    data = write_planted(tmp_path / "data")
    job = write_job(tmp_path / "job.yaml", data, train={"epochs": 20}, checkpoint={"interval_steps": 5})
    run_dir, limit = tmp_path / "run", ("--set", "cluster.max_restarts=0")
    arguments = ("train", job, *ON_ONE_SERVER, *limit)
    with (
        memory_cgroup() as cgroup,
        paced(*arguments, run_dir=run_dir, within=cgroup.within, hook=_HUNGRY) as training,
    ):
        training.wait_for("checkpoint_saved")
        cgroup.limit_to(cgroup.used_bytes() + 2**27)
        (tmp_path / "eat").touch()
        result = training.command.finish()
        assert training.command.mark.processes() == []
    assert result.returncode == 1
    [message] = messages(result.stderr)
    # While the kernel frees what the server had, it may kill the worker as well; the run names one that it killed.
    killed = re.match("crossfade: error: (server-0|worker-0) was killed for lack of memory; restarted 0 times", message)
    assert killed is not None, message
    assert message.endswith("; 'crossfade plan' has the memory that each process needs)")
    [summary] = json.loads(crossfade_here("status", run_dir, "--json").stdout)["runs"]
    failure = summary["failure"]
    assert failure["text"] == f"{killed[1]} on {os.uname().nodename} was killed for lack of memory"
    assert failure["lost_steps"] < failure["step"]
