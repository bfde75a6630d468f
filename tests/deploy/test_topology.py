"""The names of roles, their addresses, and the hosts that they are assigned to."""

from pathlib import Path
from typing import Any, cast

import pytest

from crossfade.base.errors import ClusterError, InputError
from crossfade.deploy.topology import (
    AcceptedRoles,
    Address,
    Role,
    assign_roles,
    free_address,
    missing_hosts,
    sizes_on_hosts,
)
from crossfade.trainer.config.sections import ClusterConfig

SEPARATE, TOGETHER = {"one_role_per_host": True}, {"hosts": 2}


def test_names_of_roles_and_addresses_are_parsed_or_rejected() -> None:
    for name in ("scheduler", "server-0", "worker-12"):
        assert Role.from_name(name).name == name
    for name in ("", "server", "worker-", "worker-x", "boss-1", "worker-1-2"):
        with pytest.raises(ClusterError, match="not the name of a role"):
            Role.from_name(name)
    for text in ("", "7070", ":7070", "host:", "host:port", "host:70700", "host:-1"):
        with pytest.raises(InputError, match="join: expected HOST:PORT, as in"):
            Address.parse(text, "--join")


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


@pytest.mark.parametrize(
    ("settings", "sizes", "accepted", "expected", "missing"),
    [
        (SEPARATE, (1, 1), "server worker", "scheduler | server-0 | worker-0", 0),
        (SEPARATE, (1, 1), "worker server", "scheduler | worker-0 | server-0", 0),
        (SEPARATE, (1, 1), "all all", "scheduler | server-0 | worker-0", 0),
        (SEPARATE, (1, 1), "all server", "scheduler | worker-0 | server-0", 0),
        (SEPARATE, (1, 1), "server server worker", "scheduler | server-0 | | worker-0", 0),
        # Roles of missing hosts go to the others, and last to the coordinator's.
        (SEPARATE, (2, 2), "server worker worker", "scheduler | server-0 server-1 | worker-0 | worker-1", 1),
        (SEPARATE, (2, 2), "server server worker", "scheduler | server-0 | server-1 | worker-0 worker-1", 1),
        (SEPARATE, (2, 2), "worker worker", "scheduler server-0 server-1 | worker-0 | worker-1", 2),
        (SEPARATE, (2, 2), "all", "scheduler | server-0 server-1 worker-0 worker-1", 3),
        (SEPARATE, (2, 2), "", "scheduler server-0 server-1 worker-0 worker-1", 4),
        (SEPARATE, (2, 2), "server all worker all", "scheduler | server-0 | server-1 | worker-0 | worker-1", 0),
        (TOGETHER, (2, 2), "worker all", "scheduler server-0 server-1 worker-0 | worker-1 |", 0),
        (TOGETHER, (3, 2), "all", "scheduler server-0 server-2 worker-0 | server-1 worker-1", 0),
        # Workers that hold the tables need neither scheduler nor servers.
        (SEPARATE, (0, 3), "worker all worker", "| worker-0 | worker-2 | worker-1", 0),
        (SEPARATE, (0, 3), "server worker", "| | worker-0 worker-1 worker-2", 2),
        (SEPARATE, (0, 3), "", "worker-0 worker-1 worker-2", 3),
        (TOGETHER, (0, 3), "all", "worker-0 worker-2 | worker-1", 0),
    ],
)
def test_each_role_is_assigned_to_a_host_that_accepts_it(
    settings: dict[str, Any], sizes: tuple[int, int], accepted: str, expected: str, missing: int
) -> None:
    cluster = ClusterConfig(servers=sizes[0], workers=sizes[1], **settings)
    offers = {str(number): cast(AcceptedRoles, offer) for number, offer in enumerate(accepted.split())}
    hosts: dict[str, AcceptedRoles] = {"home": "all", **offers}
    assigned = assign_roles(cluster, hosts)
    assert [[role.name for role in assigned.get(host, [])] for host in hosts] == [
        names.split() for names in expected.split("|")
    ]
    assert missing_hosts(cluster, hosts) == missing


def test_free_port_is_none_that_the_kernel_may_assign_before_a_role_listens() -> None:
    first_assigned = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert {free_address(ClusterConfig()).port < first_assigned for _ in range(20)} == {True}
