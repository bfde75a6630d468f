"""Events as typed objects and as JSON."""

import json
from typing import Any

import pytest

from crossfade.trainer.runs.events import (
    EVENT_TYPES,
    EpochEvent,
    PhaseEvent,
    RestartEvent,
    StepEvent,
    StoppedEvent,
    parse_event,
    parse_record,
    to_json,
)

STEP = StepEvent(
    epoch=1,
    step=2,
    steps=10,
    examples=512,
    loss=0.5,
    learning_rate=0.1,
    local_examples=256,
    rows={"track": 7},
    seconds={"pull": 0.25},
)


@pytest.mark.parametrize(
    "event",
    [
        STEP,
        EpochEvent(epoch=1, step=2, loss=0.5, valid={"ndcg@10": 0.25, "queries": 3}),
        EpochEvent(epoch=1, step=2, loss=0.5),
        PhaseEvent(name="training", step=0, rows_from=None),
        StoppedEvent(step=4, checkpoint="checkpoints/step-4"),
        RestartEvent(generation=2, cause="server-0 was killed", step=8, skipped=["step 9: corrupt"]),
    ],
    ids=lambda event: event.kind,
)
def test_event_survives_json(event: Any) -> None:
    text = json.dumps(to_json(event))
    assert json.loads(text)["event"] == event.kind
    assert parse_event(json.loads(text)) == event


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"event": "saved", "step": 8}, "unknown event kind 'saved'; expected one of step, epoch, phase"),
        ({"event": ["step"]}, "unknown event kind"),
        ({}, "unknown event kind None"),
        ({"event": "checkpoint_failed", "step": 8}, "event 'checkpoint_failed': message: Field required"),
        ({**to_json(STEP), "own_examples": 3}, "event 'step': own_examples: Extra inputs are not permitted"),
        ({**to_json(STEP), "rows": {"track": None}}, "event 'step': rows.track: Input should be a valid integer"),
    ],
)
def test_invalid_event_is_rejected_with_its_reason(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_event(values)


@pytest.mark.parametrize("time", [{}, {"time": "noon"}])
def test_log_line_without_time_is_rejected(time: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="time: expected Unix time"):
        parse_record({**time, **to_json(STEP)})


def test_kinds_are_distinct_and_fields_documented() -> None:
    assert len(EVENT_TYPES) == 23
    for event in EVENT_TYPES.values():
        assert event.__doc__
        assert all(field.description for field in event.model_fields.values())
