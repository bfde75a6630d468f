"""Progress of a training: lines for a log, and a bar on a terminal."""

import pytest

from crossfade import display
from crossfade.base import logs
from crossfade.display import TrainDisplay
from crossfade.kvstore import compile_notice
from crossfade.terminal import Progress
from crossfade.trainer.runs.events import EpochEvent, StepEvent

VALID = {
    f"{kind}@{k}": 0.123456789 for kind in ("recall", "ndcg", "map", "mrr", "hit_rate") for k in (1, 5, 10, 20, 50)
}


def step(number: int, *, steps: int = 123_456_789) -> StepEvent:
    return StepEvent(
        epoch=1234,
        step=number,
        steps=steps,
        examples=number,
        loss=1234.56789,
        learning_rate=0.1,
        local_examples=1,
        rows={},
        seconds={},
    )


def shown(capsys: pytest.CaptureFixture[str], progress: Progress | None) -> list[str]:
    """Return the lines of a run of two steps that is evaluated once."""
    logs.configure_console()
    with TrainDisplay("ndcg@10", progress) as shown_run:
        shown_run.show(step(1))
        shown_run.show(step(2))
        shown_run.show(EpochEvent(epoch=1234, step=2, loss=0.456789123, valid={**VALID, "queries": 1000}))
        shown_run.show(EpochEvent(epoch=1235, step=2, loss=0.4))
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("progress", [None, "lines"])
def test_lines_of_a_log_have_the_loss_and_the_chosen_metric(
    capsys: pytest.CaptureFixture[str], progress: Progress | None
) -> None:
    lines = shown(capsys, progress)
    assert lines == [
        "crossfade: epoch=1234 step=1 progress=0.0000 batch_loss=1234.57",
        "crossfade: epoch=1234 step=2 progress=0.0000 loss=0.456789 ndcg@10=0.123457",
    ]
    assert max(map(len, lines)) <= 100


def test_bar_has_the_epoch_the_loss_and_the_best_metric(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainDisplay("ndcg@10", "bar") as shown_run:
        shown_run.show(EpochEvent(epoch=1, step=1, loss=0.5, valid={**VALID, "queries": 1000}))
        shown_run.show(step(2, steps=2))
    last = capsys.readouterr().err.rpartition("\r")[2]
    assert last.startswith("training: 100%|")
    assert "epoch=1234, loss=1234.5679, ndcg@10=0.1235" in last


def test_compilation_is_announced_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure_console()
    with TrainDisplay("ndcg@10"):
        compile_notice.announce()
        compile_notice.announce()
    with TrainDisplay("ndcg@10"):
        pass
    compile_notice.announce()
    assert capsys.readouterr().err == "crossfade: compiling kernels for this processor (once) ...\n"


@pytest.mark.parametrize(
    ("seconds", "total", "lines"),
    [(0.0, 5_000, ["2.50k of 5.00k"]), (0.0, None, ["2.50k"]), (10.0, 5_000, [])],
)
def test_phase_has_lines_in_a_log_if_it_takes_long(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    total: int | None,
    lines: list[str],
) -> None:
    logs.configure_console()
    monkeypatch.setattr(display, "_LINE_SECONDS", seconds)
    with display.progress_bars() as bars:
        bars.phase("read events", total, "B")
        bars.advance(2_500)
    printed = capsys.readouterr().err.splitlines()
    assert printed[-1:] == [f"crossfade: read events: {line} in 00:00" for line in lines]
