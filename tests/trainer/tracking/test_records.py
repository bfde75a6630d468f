"""What is recorded of the events and of the report of a run."""

from crossfade.trainer.runs.events import PhaseEvent, StepEvent
from crossfade.trainer.tracking.records import EventRecords, Point


def step(number: int, seconds: float) -> StepEvent:
    return StepEvent(
        epoch=1,
        step=number,
        steps=100,
        examples=10 * number,
        loss=0.5,
        learning_rate=0.1,
        local_examples=10,
        rows={"track": 7},
        seconds={"pull": seconds / 2, "push": seconds / 2},
    )


def test_steps_are_recorded_once_a_second_with_their_throughput() -> None:
    records = EventRecords()
    first = records.of(step(1, 0.5), now=100.0)
    assert first == Point(100.0, 1, {"train/loss": 0.5, "train/learning_rate": 0.1})
    assert records.of(step(2, 1.0), now=100.5) is None
    third = records.of(step(5, 2.5), now=101.0)
    assert isinstance(third, Point)
    assert third.values["train/examples_per_second"] == 40 / 2.0


def test_throughput_does_not_span_a_restart() -> None:
    records = EventRecords()
    records.of(step(50, 9.0), now=100.0)
    assert records.of(PhaseEvent(name="training", epoch=1, step=20), now=101.0) is None
    after = records.of(step(21, 4.0), now=102.0)
    assert isinstance(after, Point)
    assert "train/examples_per_second" not in after.values
