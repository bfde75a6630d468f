"""What is recorded of the events and of the report of a run."""

from crossfade.trainer.runs.events import EpochEvent, PhaseEvent, StepEvent
from crossfade.trainer.tracking.records import EventRecords, Point, report_point


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


def test_epoch_has_metrics_on_valid_by_accepted_names() -> None:
    event = EpochEvent(epoch=2, step=8, loss=0.25, valid={"ndcg@10": 0.5, "queries": 7})
    expected = {"train/epoch_loss": 0.25, "train/epoch": 2.0, "valid/ndcg_at_10": 0.5, "valid/queries": 7.0}
    assert EventRecords().of(event, now=1.0) == Point(1.0, 8, expected)
    assert EventRecords().of(EpochEvent(epoch=2, step=8, loss=0.25), now=1.0) == Point(
        1.0, 8, {"train/epoch_loss": 0.25, "train/epoch": 2.0}
    )


def test_report_has_its_numbers_and_the_metrics_of_each_split() -> None:
    report = {"steps": 9, "best_epoch": None, "engine": "cpu", "metrics": {"test": {"recall@10": 0.5}}}
    assert report_point(report, now=3.0) == Point(3.0, 9, {"report/steps": 9.0, "report/test/recall_at_10": 0.5})
