"""The port that the scheduler gets when the job names none, and the roles of hosts where it leaves them open."""

import socket
from pathlib import Path
from typing import Any

import pytest

from crossfade.base.errors import ClusterError, InputError
from crossfade.deploy import topology
from crossfade.deploy.topology import Address, Role, scheduler_address, sizes_on_hosts
from crossfade.trainer.config.sections import ClusterConfig

CLUSTER = ClusterConfig(servers=1)


def test_names_of_roles_and_addresses_are_parsed_or_rejected() -> None:
    for name in ("scheduler", "server-0", "worker-12"):
        assert Role.from_name(name).name == name
    for name in ("", "server", "worker-", "worker-x", "boss-1", "worker-1-2"):
        with pytest.raises(ClusterError, match="not the name of a role"):
            Role.from_name(name)
    for text in ("", "7070", ":7070", "host:", "host:port", "host:70700", "host:-1"):
        with pytest.raises(InputError, match="join: expected HOST:PORT, as in"):
            Address.parse(text, "--join")


def test_scheduler_gets_a_free_port_that_the_kernel_assigns_to_nobody() -> None:
    first_assigned = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {scheduler_address(CLUSTER).port for _ in range(5)}
    assert len(ports) > 1
    assert all(10_000 <= port < first_assigned for port in ports)
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_occupied_ports_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
            listener.listen()
        taken = [listener.getsockname()[1] for listener in (first, second)]
        monkeypatch.setattr(topology, "_unassigned_ports", lambda: taken)
        assert scheduler_address(CLUSTER).port not in {0, *taken}


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, (3, 3)),
        ({"workers": 1}, (3, 1)),
        ({"store": "mxnet", "servers": 0}, (3, 3)),
        ({"store": "sharded"}, (0, 3)),
        ({"servers": 0}, (0, 3)),
        ({"workers": 8}, (0, 8)),
        ({"servers": 6}, (6, 3)),
        ({"servers": 6, "workers": 1}, (6, 1)),
    ],
)
def test_hosts_get_servers_and_workers_that_the_job_leaves_open(given: dict[str, Any], sizes: tuple[int, int]) -> None:
    cluster = ClusterConfig.model_validate(given)
    values = {"servers": cluster.servers, "workers": cluster.workers, **sizes_on_hosts(cluster, 3)}
    assert (values["servers"], values["workers"]) == sizes
    assert sizes_on_hosts(cluster, 1) == {}
    sized = ClusterConfig.model_validate(cluster.model_dump() | values)
    assert sizes_on_hosts(sized, 3) == {}, "a job has its sizes once"
