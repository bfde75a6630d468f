"""Clusters of scripted agents."""

import pytest
from scripted_agents import Cluster, Host, step


@pytest.fixture
def alone() -> Cluster:
    """One host, whose generation 1 has trained a step."""
    cluster = Cluster()
    cluster.start()
    cluster.local.report_events(step(1))
    return cluster


@pytest.fixture
def pair() -> tuple[Cluster, Host]:
    """Two hosts, whose generation 1 has trained a step, and the second of them."""
    cluster = Cluster(hosts=2)
    other = cluster.join("10.0.0.2")
    cluster.start()
    cluster.local.report_events(step(1))
    return cluster, other
