"""Periodic work on a clock that the test sets."""

from crossfade.trainer.training.periodic import PeriodicAction


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_action_is_due_by_steps_or_by_seconds_since_its_last_call() -> None:
    clock, calls = Clock(), list[int]()
    action = PeriodicAction(calls.append, every_steps=10, every_seconds=5.0, clock=clock)
    for step, seconds in [(9, 4.0), (10, 4.0), (11, 8.0), (12, 9.0), (21, 10.0), (22, 11.0)]:
        clock.now = seconds
        action.after_step(step, step)
    assert calls == [10, 12, 22]
    action.restart(30)
    assert not action.is_due(39)
    assert action.is_due(40)


def test_action_without_a_period_is_never_due() -> None:
    assert not PeriodicAction(int).is_due(1 << 40)


def test_first_call_waits_for_its_period_unless_it_is_due_at_once() -> None:
    clock = Clock()
    assert not PeriodicAction(int, every_seconds=1.0, clock=clock).is_due()
    assert PeriodicAction(int, every_seconds=1.0, clock=clock, due_at_once=True).is_due()


def test_work_that_takes_long_does_not_shorten_the_next_period() -> None:
    clock = Clock()

    def work() -> None:
        clock.now += 100.0

    action = PeriodicAction(work, every_seconds=10.0, clock=clock)
    action.run(1)
    assert not action.is_due(1)
