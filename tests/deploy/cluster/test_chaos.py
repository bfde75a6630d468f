"""The short form of ``make chaos``, and that its checks can fail."""

from pathlib import Path

import numpy as np
import pytest
from chaos import KINDS, plan_faults, run_chaos
from chaos_layouts import LAYOUTS, Name, layout_of
from ledger import check_ledger
from needs import root
from small_disk import MountError

ROLES = ["scheduler", "server-0", "server-1", "worker-0", "worker-1"]


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_planned_faults_include_every_kind(layout: Name) -> None:
    faults = plan_faults(1, 24, 10_000, layout, ROLES)
    assert {fault.kind for fault in faults} == set(KINDS[layout])
    assert {fault.role for fault in faults} == set(ROLES)
    assert {fault.moment for fault in faults} >= {"steps", "checkpoint"}
    assert faults == plan_faults(1, 24, 10_000, layout, ROLES) != plan_faults(2, 24, 10_000, layout, ROLES)
    assert [fault.step for fault in faults] == sorted(fault.step for fault in faults)


def write_ledger(folder: Path, name: str, steps: list[tuple[int, int, list[int]]]) -> None:
    """Write a worker's ledger: (step, epoch, interactions) of each step."""
    entries = [np.array([step, epoch, len(pairs), *pairs], dtype=np.int64) for step, epoch, pairs in steps]
    (folder / name).write_bytes(np.concatenate(entries).tobytes())


@pytest.mark.parametrize(
    ("second_epoch", "is_right"), [([[1], [0]], True), ([[1], [1]], False), ([[1], []], False), ([[0, 1], [1]], False)]
)
def test_ledger_with_missing_or_repeated_interaction_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second_epoch: list[list[int]], is_right: bool
) -> None:
    column = np.array([0, 0]), np.array([0, 1])
    monkeypatch.setattr("ledger.planted_splits", lambda: {"train": column})
    monkeypatch.setattr("ledger.train_rows", lambda: 2)
    # The first generation took step 1 too, but the job went back to step 1 and took it again.
    write_ledger(tmp_path, "1-11", [(0, 0, [0]), (1, 1, [0, 1])])
    write_ledger(tmp_path, "2-12", [(0, 0, [1]), (1, 1, [])])
    write_ledger(tmp_path, "3-13", [(1, 1, second_epoch[0])])
    write_ledger(tmp_path, "4-14", [(1, 1, second_epoch[1])])
    if is_right:
        check_ledger(tmp_path, epochs=2, steps=2)
    else:
        with pytest.raises(AssertionError):
            check_ledger(tmp_path, epochs=2, steps=2)
