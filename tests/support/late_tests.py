"""The order that tests run in: the fast ones first."""

import pytest

LATE_MARKERS = ("slow", "cluster", "docker")


def runs_late(item: pytest.Item) -> bool:
    """Return whether a test runs after the fast ones."""
    return any(item.get_closest_marker(name) for name in LATE_MARKERS)
