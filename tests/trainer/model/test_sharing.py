"""Threads that share parts of a computation: each part is computed once, and errors arrive."""

import threading

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


def test_parts_are_computed_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "get_num_threads", lambda: 3)
    meeting = threading.Barrier(3, timeout=10)
    WorkSharing().run(lambda _: meeting.wait(), range(3))


def test_calling_thread_computes_everything_while_the_others_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "get_num_threads", lambda: 2)
    shared, begun, released = WorkSharing(), threading.Event(), threading.Event()

    def keep_busy(_: int) -> None:
        begun.set()
        released.wait(timeout=10)

    other = threading.Thread(target=shared.run, args=(keep_busy, range(2)))
    other.start()
    begun.wait(timeout=10)
    computed_by: list[int] = []
    shared.run(lambda _: computed_by.append(threading.get_ident()), range(5))
    released.set()
    other.join()
    assert computed_by == [threading.get_ident()] * 5


@pytest.mark.parametrize("failing", [0, 6])
def test_error_of_a_part_is_raised(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "get_num_threads", lambda: 2)

    def work(part: int) -> None:
        if part == failing:
            raise ValueError(f"part {part}")

    with pytest.raises(ValueError, match=f"part {failing}"):
        WorkSharing().run(work, range(7))
