"""Steps since a checkpoint, and the time that they took."""

from scripted_agents import saved, step

from crossfade.trainer.runs.events import PhaseEvent, StoppedEvent
from crossfade.trainer.runs.resumption import UnsavedWork


def test_work_since_a_checkpoint_and_since_the_start_is_measured() -> None:
    work = UnsavedWork(0, 100.0)
    work.record(PhaseEvent(name="training", step=0), 110.0)
    work.record(step(40), 120.0)
    assert work.since(0) == (40, 10.0)
    work.record(saved(40), 122.0)  # which took one second to write
    work.record(step(70), 131.0)
    assert (work.checkpoint_step, work.since(40), work.since(0)) == (40, (30, 10.0), (70, 21.0))
    assert work.since(20) == (50, None)
    work.record(StoppedEvent(step=71), 132.0)
    assert work.since(40)[0] == 31


def test_attempt_that_resumes_begins_at_its_checkpoint() -> None:
    work = UnsavedWork(40, 490.0)
    assert (work.step, work.checkpoint_step, work.since(40)) == (40, 40, (0, None))
    work.record(PhaseEvent(name="training", step=40), 500.0)
    work.record(step(45), 503.0)
    work.record(PhaseEvent(name="training", step=40), 504.0)  # of another worker
    assert (work.step, work.checkpoint_step, work.since(40)) == (45, 40, (5, 3.0))
