"""What all tests share: the order they run in."""

import pytest

LATE_MARKERS = ("slow", "cluster", "docker")


def runs_late(item: pytest.Item) -> bool:
    """Whether a test is left to the end, so that the fast ones report first."""
    return any(item.get_closest_marker(name) for name in LATE_MARKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the fast tests first; within each half the order stays as collected."""
    items.sort(key=runs_late)
