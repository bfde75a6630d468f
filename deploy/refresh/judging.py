"""Judge a version: whether it is published, by its metric on the new events that were held out.

record = decide(plan, manifest, report, metric, Guard.parse("ndcg@10 >= 0.98 * last"), seconds)
record.status, record.before, record.after
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from crossfade.deploy.refresh.versions import Plan, VersionRecord
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.runs.shown_metrics import error_of

_CONDITION = re.compile(r"\s*((?:recall|ndcg|map|mrr|hit_rate)@[1-9][0-9]*)\s*>=\s*([0-9]*\.?[0-9]+)\s*\*\s*last\s*")


class Guard(NamedTuple):
    """The condition under which a version is published: ``metric`` on valid is at least ``share`` of the last one's."""

    metric: str
    share: float

    @staticmethod
    def parse(text: str) -> Guard:
        """Parse text such as ``ndcg@10 >= 0.98 * last``.

        Raises:
            ValueError: it has another form.
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise ValueError(
                "expected recall, ndcg, map, mrr, or hit_rate in a condition such as 'ndcg@10 >= 0.98 * last', but "
                f"found '{text:.100}'"
            )
        return Guard(found[1], float(found[2]))


def decide(
    plan: Plan,
    manifest: DatasetManifest,
    report: Mapping[str, Any],
    metric: str,
    guard: Guard | None,
    seconds: Mapping[str, float],
) -> VersionRecord:
    """Return the record of the version of ``plan``, whose training has left ``report``: whether it is published.

    It may fall short of the condition ``guard`` by a standard error, the larger one of before and after: the error of a
    metric that no query contributes to is 0. It is published without a condition, without a metric before, or if it was
    made only to leave out what was forgotten.
    """
    start, valid = report["valid_at_start"] or {}, report["metrics"].get("valid", {})
    if report["popularity"] is not None and "valid" in report["metrics"]:
        valid = report["popularity"]["without"]  # as before the first step
    before = start.get(metric) if start.get("queries") and plan.files else None  # no query: 0, and not a metric
    after, error = valid.get(metric), max(metrics.get(error_of(metric), 0.0) for metrics in (start, valid))
    is_met = guard is None or before is None or (after is not None and after + error >= guard.share * before)
    newest = manifest.source.get("last_timestamp")
    return VersionRecord(
        number=plan.number,
        status="published" if is_met else "rejected",  # NaN is rejected
        base=plan.base,
        files=plan.files,
        events=sum(split.rows for split in manifest.splits.values()) if plan.files else 0,
        newest=newest if isinstance(newest, int) else None,
        metric=metric,
        before=before,
        after=after,
        error=None if after is None else error,
        queries=int(valid.get("queries", 0)),
        decided=time.time(),
        seconds=dict(seconds),
    )
