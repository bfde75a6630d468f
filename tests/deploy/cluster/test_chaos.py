"""The short form of ``make chaos``, which also checks that each interaction is used once in each epoch."""

from pathlib import Path

import pytest
from chaos import Layout, plan_faults, run_chaos
from needs import root
from small_disk import MountError


@pytest.mark.cluster
def test_run_under_random_faults_equals_an_undisturbed_run(tmp_path: Path) -> None:
    # A step takes long, so that few last as long as both faults.
    layout, seed = Layout("host", servers=1), 49
    slow, kill = plan_faults(seed, 2, 100, layout)
    assert (slow.kind, slow.role, kill.kind, kill.moment) == ("slow", "worker-1", "kill", "start-up")
    try:
        run_chaos(tmp_path, layout, seed, faults=2, epochs=8, step_seconds=0.15)
    except MountError as reason:
        pytest.skip(root(reason))
