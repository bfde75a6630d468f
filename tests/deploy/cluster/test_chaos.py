"""The short form of ``make chaos``, which also checks that each interaction is used once in each epoch."""

from pathlib import Path

import pytest
from chaos import plan_faults, run_chaos
from chaos_layouts import layout_of
from needs import root
from small_disk import MountError


@pytest.mark.cluster
def test_run_under_random_faults_equals_an_undisturbed_run(tmp_path: Path) -> None:
    try:
        with layout_of("host", tmp_path) as layout:
            # A step takes long, so that few last as long as both faults.
            layout.servers, seed = 1, 49
            slow, kill = plan_faults(seed, 2, 100, layout.name, layout.role_names())
            assert (slow.kind, slow.role, kill.kind, kill.moment) == ("slow", "worker-1", "kill", "start-up")
            run_chaos(layout, seed, faults=2, epochs=8, step_seconds=0.15)
    except MountError as reason:
        pytest.skip(root(reason))
