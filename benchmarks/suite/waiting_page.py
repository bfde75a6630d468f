"""Write the section of the page on what people wait for besides training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from crossfade.trainer.training.phases import STEP_PHASES
from suite.markup import cell, prose, table
from suite.plan import Scale
from suite.results import Results
from suite.waiting import ALS, COMMANDS
from suite.waiting_work import POPULARITY

PREPARE = {
    "crossfade": "Crossfade, Parquet",
    "plain": "plain DuckDB statements, Parquet",
    "csv": "Crossfade, CSV",
}
FIT = {"crossfade": "Crossfade", "implicit": "implicit, ALS"}
CALLS = {"crossfade": "Crossfade", "implicit": "implicit, ALS"}
_SECONDS = ("seconds", "cpu_seconds")


def waiting_section(scale: Scale, results: Results) -> Iterator[str]:
    """Yield the paragraphs and tables of the section."""
    yield from _prepare(scale, results)
    yield from _fit(scale, results)
    yield from _calls(scale, results)
    yield from _commands(scale, results)
    yield from _compile(results)
    yield from _evaluation(scale, results)


def _prepare(scale: Scale, results: Results) -> Iterator[str]:
    sizes = scale.waiting
    yield prose(
        f"""Preparing: `crossfade prepare --timestamp time --hold-out last-1` of {sizes.events:,} events with text IDs,
        of {sizes.event_users:,} customers, and of {sizes.event_tracks:,} tracks by Zipf's law with exponent
        {POPULARITY:g}. Beside it, four DuckDB statements: they number customers and
        tracks by frequency, join, and write the numbers in the same order. They check nothing and hold nothing out.
        Both are commands, with their start. Memory is that of the largest process."""
    )
    rows = []
    for name, text in PREPARE.items():
        key = f"waiting/prepare/{name}"
        ratio = results.ratio(key, "waiting/prepare/plain", "seconds")
        cells = [cell(results, key, figure) for figure in _SECONDS]
        cells += [cell(results, key, "events_per_second", 1e-6), cell(results, key, "peak_gib")]
        rows.append([text, *cells, _ratio(ratio)])
    yield table(["", "s", "processor s", "million events/s", "GiB", "time over plain"], rows) + "\n"


def _fit(scale: Scale, results: Results) -> Iterator[str]:
    sizes = scale.waiting
    yield prose(
        f"""From a pandas frame to a model: {sizes.plays:,} plays of {sizes.users:,} customers and {sizes.tracks:,}
        tracks with planted tastes, in a process that has fitted a few plays before, so that kernels are compiled and
        loaded. Crossfade is `crossfade.fit` with its defaults, which hold out a tenth to choose the epoch.
        implicit is its alternating least squares with {ALS["factors"]} factors and {ALS["iterations"]}
        iterations, and its defaults otherwise; building the matrix is part of it. ndcg@10 is that of plays that were in
        neither's frame, a ninth as many, with all tracks ranked but those in the frame."""
    )
    rows = []
    for name, text in FIT.items():
        key = f"waiting/fit/{name}"
        cells = [cell(results, key, figure) for figure in _SECONDS]
        quality = results.median(key, "ndcg@10")
        ratio = results.ratio(key, "waiting/fit/implicit", "seconds")
        rows.append([text, *cells, "" if quality is None else f"{quality:.4f}", _ratio(ratio)])
    yield table(["", "s", "processor s", "ndcg@10", "time over implicit"], rows) + "\n"


def _calls(scale: Scale, results: Results) -> Iterator[str]:
    yield prose(
        f"""Calls of a model that stays open, on the same plays: milliseconds of the ten best items for one customer
        (`recommend`) and the ten nearest to one item (`similar`; implicit's `similar_items`), medians of
        {scale.waiting.calls} calls after the first. Crossfade returns a frame with IDs, implicit arrays of numbers."""
    )
    figures = ("recommend_ms", "similar_ms")
    rows = [
        [text, *(cell(results, f"waiting/calls/{name}", figure) for figure in figures)] for name, text in CALLS.items()
    ]
    yield table(["", "recommend, ms", "similar, ms"], rows) + "\n"


def _commands(scale: Scale, results: Results) -> Iterator[str]:
    yield prose(
        f"""Commands, from their start to their end, on a run of the same plays: medians of {scale.waiting.starts}
        starts after the first."""
    )
    rows = [[f"`{text}`", *_seconds(results, f"waiting/commands/{name}")] for name, text in COMMANDS.items()]
    yield table(["", "s", "processor s"], rows) + "\n"


def _compile(results: Results) -> Iterator[str]:
    yield prose(
        """Compiling: what a default training of 5,000 interactions takes with an empty folder of kernels beyond what it
        takes right after, with the kernels that the first one left there."""
    )
    key = "waiting/compile"
    second = [cell(results, key, f"second_{figure}") for figure in _SECONDS]
    yield (
        table(["", "s", "processor s"], [["first, minus second", *_seconds(results, key)], ["second", *second]]) + "\n"
    )


def _evaluation(scale: Scale, results: Results) -> Iterator[str]:
    customers, items, interactions = scale.waiting.trained
    phases = ", ".join(f"`{name}`" for name in STEP_PHASES)
    yield prose(
        f"""Evaluation in a default training of {customers:,} customers, {items:,} items, and {interactions:,}
        interactions of `crossfade synthesize`: seconds of the evaluations of epochs over those of steps ({phases}), by
        `seconds_by_phase` of the run's `report.json`."""
    )
    key = "waiting/evaluation"
    cells = [cell(results, key, figure) for figure in ("step_seconds", "evaluate_seconds", "share")]
    yield table(["steps, s", "evaluation, s", "share"], [cells]) + "\n"


def _seconds(results: Results, key: str) -> Sequence[str]:
    return [cell(results, key, figure) for figure in _SECONDS]


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
