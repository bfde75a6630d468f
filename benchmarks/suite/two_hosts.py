"""Train on two hosts, which are network namespaces of this machine, with links of a given bandwidth.

    result = train_on_two_hosts(job, run_dir, gbits=10, servers=2)      # 0: as fast as they are
    result["step_ms"], result["bytes_pulled"]

They are started as users start them, ``crossfade train`` on one host and ``crossfade agent`` on the other; each has a
worker, and a server unless the workers hold the tables. The kernel limits both directions of both links (a token
bucket, ``tc``'s tbf), which a connection between the hosts confirms before each run.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suite.processes import BENCHMARKS, ROOT, MeasurementError, background, run_command, wait_while
from suite.training import TIMEOUT_SECONDS, read_events, read_report, summarize, train_command

sys.path.append(str(ROOT / "tests" / "support"))

from net_hosts import Host, network, unavailable

PORT = 7070
LINK_SECONDS = 1.0
COMMAND_SECONDS = 60.0
HOSTS = 2
TOLERANCE = 1.05
"""A connection may exceed the limit by this factor: the burst passes at once."""


def train_on_two_hosts(job: dict[str, Any], run_dir: Path, gbits: float, *, servers: int = HOSTS) -> dict[str, Any]:
    """Run the job with links of ``gbits`` Gbit/s, 0: without a limit; return its figures.

    Without ``servers``, the workers hold the tables.

    Raises:
        MeasurementError: this machine cannot create the hosts or limit their links, or the run failed.
    """
    if reason := unavailable():
        raise MeasurementError(reason)
    try:
        with network(HOSTS) as hosts:
            for host in hosts:
                if gbits:
                    host.limit_link(gbits)
            link = max(link_gbits(hosts), link_gbits(hosts[::-1]))
            if gbits and link > TOLERANCE * gbits:
                raise MeasurementError(f"the link is not limited: {link:.1f} Gbit/s instead of {gbits:g}")
            result = _train(job, run_dir, hosts, servers)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise MeasurementError(f"the network of two hosts failed: {error}") from None
    report = read_report(run_dir)
    moved = {name: report[name] / report["steps"] for name in ("bytes_pulled", "bytes_pushed")}
    return result | moved | {"link_gbits": link}


def _train(job: dict[str, Any], run_dir: Path, hosts: Sequence[Host], servers: int) -> dict[str, Any]:
    first, second = hosts
    token = {"CROSSFADE_TOKEN": secrets.token_hex(16)}
    listen = f"{first.address}:{PORT}"
    train = [*first.within, *train_command(job, run_dir, servers=servers, workers=HOSTS)]
    train += ["--set", f"cluster.hosts={HOSTS}"]
    train += ["--set", f"cluster.host={first.address}", "--set", f"cluster.coordinator_address={listen}"]
    agent = [*second.within, sys.executable, "-m", "crossfade", "agent", "--join", listen, "--run-dir", str(run_dir)]
    with (
        background(train, run_dir.with_suffix(".log"), token) as coordinator,
        background(agent, run_dir.with_suffix(".agent.log"), token) as other,
    ):
        wait_while(lambda: not coordinator.ended(), TIMEOUT_SECONDS, other)
        wait_while(lambda: not other.ended(), COMMAND_SECONDS)
    return summarize(read_report(run_dir), read_events(run_dir, "step"))


def link_gbits(hosts: Sequence[Host]) -> float:
    """Return what one connection moves from the first host to the second, in Gbit/s."""
    sender, receiver = hosts
    module = [sys.executable, "-m", "suite.link_speed"]
    listen = [*receiver.within, *module, "receive", receiver.address]
    with subprocess.Popen(listen, stdout=subprocess.PIPE, text=True, cwd=BENCHMARKS) as receiving:
        try:
            assert receiving.stdout is not None
            port = receiving.stdout.readline().strip()
            send = [*sender.within, *module, "send", receiver.address, port, str(LINK_SECONDS)]
            run_command(send, COMMAND_SECONDS, {"PYTHONPATH": str(BENCHMARKS)})
            output, _ = receiving.communicate(timeout=COMMAND_SECONDS)
        finally:
            receiving.kill()
    received, seconds = output.split()
    return 8e-9 * int(received) / float(seconds)
