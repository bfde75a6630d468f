"""The order that tests run in: the fast ones first, then the files that take longest."""

import pytest

LATE_MARKERS = ("slow", "cluster", "docker")
LONGEST_FIRST = (
    "test_supervision",
    "test_resume",
    "test_s3_faults",
    "test_invariants",
    "test_spot",
    "test_training_from_s3",
    "test_ec2_runs",
    "test_dashboard",
    "test_two_hosts",
    "test_chaos",
    "test_host_roles",
    "test_network_faults",
    "test_disk_faults",
    "test_checkpoints_on_s3",
    "test_tune",
    "test_quick_tune",
    "test_submit_ec2_cleanup",
    "test_unshared_hosts",
)
"""Files that take over a minute. They start first, so that at the end no process is left alone with one of them."""


def run_order(item: pytest.Item) -> int:
    """Return the place of a test in the order."""
    if not any(item.get_closest_marker(name) for name in LATE_MARKERS):
        return 0
    name = item.path.stem
    return 1 + (LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST))
