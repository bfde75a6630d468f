"""``crossfade evaluate``: compute ranking metrics of a run, by segments, and compare two runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossfade.base.formatting import with_error
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.terminal import PrintOptions, print_line, print_result, print_table
from crossfade.trainer.evaluation.options import EvaluateOptions
from crossfade.trainer.runs.shown_metrics import error_of, is_metric

_EXAMPLES = (
    ("crossfade evaluate runs/lastfm", "Evaluate on the test split, as the run's job specifies."),
    ("crossfade evaluate runs/lastfm --split valid --k 5 100 --baselines", "Compare with tuned ALS and EASE, too."),
    ("crossfade evaluate runs/lastfm --segments", "Compare customers who have listened a little and a lot."),
    ("crossfade evaluate runs/lastfm --popularity-damping 0.15 --diversity 0.3", "Measure what re-ranking costs."),
    ("crossfade evaluate runs/new --compare runs/old", "Test whether a run ranks better than another."),
)

_NOTES = """\
After ± is the standard error of a mean over queries. Of more queries than --max-queries (default: evaluate.final of the
job), a sample is evaluated, which is the same for every run on the dataset. Baselines are rankings by popularity, by
recent popularity if there are timestamps, and by item cosine. A run below a baseline by more than the error is named
first.
"""

_RERANKED = ("recall", "ndcg", "coverage", "diversity", "novelty", "gini")
Values = Mapping[str, float | int | None]


class EvaluateCommand(PrintOptions, EvaluateOptions):
    """The options of the command."""


@as_command(
    "evaluate",
    "Rank every item for every query with held-out items, or for a sample of them; print metrics and baselines.",
    _EXAMPLES,
    _NOTES,
)
def run(options: EvaluateCommand) -> int:
    """Evaluate, and print the metrics.

    Raises:
        InputError: an option or the job is invalid, the run has no embeddings or its dataset no such split, or the runs
            that are compared have different datasets.
    """
    from crossfade.display import progress_bars
    from crossfade.trainer.evaluation.run_evaluation import evaluate_run

    with progress_bars() as bars:
        results = evaluate_run(options, bars)
    print_result(options, results, lambda: _print(results, options))
    return 0


def _print(results: Mapping[str, Any], options: EvaluateCommand) -> None:
    from crossfade.display import print_metrics

    if shortfall := results["baselines"]["shortfall"]:
        print_line(shortfall)
    print_metrics({str(options.split): results[options.split]}, results["task"], results["baselines"])
    if "segments" in results:
        print_line()
        _print_segments(results["segments"])
    if "reranking" in results:
        print_line()
        _print_reranking(**results["reranking"])
    if "comparison" in results:
        print_line()
        _print_comparison(results["comparison"], options.source)


def _print_segments(segments: Mapping[str, Values]) -> None:
    """Print a column for each segment and a row for each metric at each depth; "-" where a segment has no value."""
    metrics = list(dict.fromkeys(name for values in segments.values() for name in values if is_metric(name)))
    rows = [["segment", *segments]]
    if any("min_interactions" in values for values in segments.values()):
        rows.append(["interactions", *map(_range, segments.values())])
    rows.append(["queries", *(f"{values['queries']:,}" for values in segments.values())])
    for metric in metrics:
        cells = ((values.get(metric), values.get(error_of(metric))) for values in segments.values())
        rows.append([metric, *("-" if value is None else with_error(value, error) for value, error in cells)])
    print_table(rows)


def _print_reranking(model: Values, reranked: Values) -> None:
    """Print the metrics of the model's own rankings, of re-ranked ones, and the change in percent."""
    rows = [["", "model", "re-ranked", "change"]]
    names = list(filter(is_metric, reranked))
    for name in (name for metric in _RERANKED for name in names if name.startswith(f"{metric}@")):
        before, value = model[name], reranked[name]
        if before is not None and value is not None:
            change = f"{100 * (value / before - 1):+.1f} %" if before else "-"
            rows.append([name, f"{before:.4f}", f"{value:.4f}", change])
    print_table(rows)


def _range(values: Values) -> str:
    """Return the limits of a segment's counts as ``5-9`` or ``10+``; empty where it has none."""
    if "min_interactions" not in values:
        return ""
    least, largest = values["min_interactions"], values["max_interactions"]
    if largest is None:
        return f"{least:,}+"
    return f"{least:,}" if least == largest else f"{least:,}-{largest:,}"


def _print_comparison(comparison: Mapping[str, Any], run: str) -> None:
    """Print a row for each metric: means of ``run`` and the other run, their difference, its interval and p-value."""
    print_line(f"{run} less {comparison['other']}, over the same {counted(comparison['queries'], 'query', 'queries')}")
    rows = [["", "run", "other", "difference", "95% interval", "p (Holm)", "better", "worse", "equal"]]
    for name, found in comparison["metrics"].items():
        means = [f"{found['run']:.4f}", f"{found['other']:.4f}", f"{found['difference']:+.4f}"]
        test = [f"{found['low']:+.4f} to {found['high']:+.4f}", f"{found['p_holm']:.4f}"]
        rows.append([name, *means, *test, *(f"{found[key]:,}" for key in ("better", "worse", "equal"))])
    print_table(rows)
