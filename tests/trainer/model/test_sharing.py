"""Threads that share parts of a computation: each part is computed once, and errors arrive."""

import pytest

from crossfade.trainer.model.engines import cpu
from crossfade.trainer.model.engines.cpu import WorkSharing


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_part_is_computed_once(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "get_num_threads", lambda: threads)
    shared = WorkSharing()
    for count in (0, 1, 7, 1_000):
        done: list[int] = []
        shared.run(done.append, range(count))
        assert sorted(done) == list(range(count))


@pytest.mark.parametrize("failing", [0, 6])
def test_error_of_a_part_is_raised(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "get_num_threads", lambda: 2)

    def work(part: int) -> None:
        if part == failing:
            raise ValueError(f"part {part}")

    with pytest.raises(ValueError, match=f"part {failing}"):
        WorkSharing().run(work, range(7))
