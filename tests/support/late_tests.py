"""Which tests run, and in what order: the fast ones first, then the files that take longest; some only on demand."""

import pytest

LATE_MARKERS = ("slow", "cluster", "docker")
LONG_AND_RARE = {
    "test_chaos",
    "test_ec2_runs",
    "test_fuzz",
    "test_memory",
    "test_mlflow",
    "test_mlflow_model",
    "test_notebooks",
    "test_openapi",
    "test_precompile",
    "test_prepare_sizes",
    "test_spark",
    "test_spark_bulk",
}
"""Files whose slow tests get the marker ``long``: they take a minute for code that few changes touch."""
LONGEST_FIRST = (
    "test_spark",
    "test_serve_command",
    "test_notebooks",
    "test_dashboard",
    "test_s3_faults",
    "test_precompile",
    "test_workers_with_tables",
    "test_supervision",
    "test_ec2_runs",
    "test_checkpoints_on_s3",
    "test_resume",
    "test_setup",
    "test_demo_command",
    "test_invariants",
    "test_disk_faults",
    "test_mlflow",
    "test_spot",
    "test_openapi",
    "test_explore",
    "test_prepare_sizes",
    "test_slurm",
    "test_tune",
    "test_fold_in",
    "test_refresh_command",
    "test_dense_workers",
    "test_top_k",
    "test_validate",
    "test_dataset_errors",
    "test_submit_ec2_follow",
    "test_memory",
    "test_two_hosts",
    "test_chaos",
)
"""Files that take about a minute. They start first, so that at the end no process is left alone with one of them."""


def mark_long(items: list[pytest.Item]) -> None:
    """Mark the tests that only ``make test-long`` runs."""
    for item in items:
        if item.path.stem in LONG_AND_RARE and _is_late(item):
            item.add_marker("long")


def _is_late(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in LATE_MARKERS)


def run_order(item: pytest.Item) -> int:
    """Return the place of a test in the order."""
    if not _is_late(item):
        return 0
    name = item.path.stem
    return 1 + (LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST))
