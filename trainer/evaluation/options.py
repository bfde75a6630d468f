"""Options of ``crossfade evaluate``: what is ranked and counted, for whom, and compared with what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from crossfade.base.options import Integer, option
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.recommend.options import RerankingOptions
from crossfade.trainer.runs.options import Location, ModelSource


def _max_queries(value: Any) -> Any:
    if value in (None, "auto", "all"):
        return value
    try:
        return _COUNT.validate_python(value)
    except ValidationError:
        raise ValueError("expected a number of queries from 1, auto, or all") from None


_COUNT = TypeAdapter(Annotated[Integer, Ge(1)])
MaxQueries = Annotated[int | str, BeforeValidator(_max_queries)]
"""How many queries are evaluated, at most: a number, ``auto``, or ``all``."""


class EvaluateOptions(RerankingOptions, ModelSource):
    """Which run to evaluate, and how."""

    group_notes: ClassVar[Mapping[str, str]] = {"model": "RUN is a local run folder with embeddings."}

    source: Location = option(
        ..., "evaluate the embeddings in this run folder", group="rankings", value="RUN", positional=True
    )
    split: SplitName = option("test", "evaluate on this split", group="rankings")
    k: tuple[Annotated[Integer, Ge(1)], ...] | None = option(
        None, "cut rankings at these depths (default: those of the job)", group="rankings", value="K", min_length=1
    )
    task: Literal["new", "repeat"] | None = option(
        None,
        "count held-out items that are new to a query, and rank no others that it has in an excluded split; or rank "
        "and count all (default: that of the job)",
        group="rankings",
    )
    by: Literal["query", "moment"] | None = option(
        None,
        "judge all held-out items of a query together, or those of each timestamp by themselves, with the history "
        "before it (default: that of the job)",
        group="rankings",
    )
    exclude: tuple[SplitName, ...] | None = option(
        None,
        "leave items of these splits out of the rankings with task new (default: those of the job)",
        group="rankings",
        optional_values=True,
    )
    max_queries: MaxQueries | None = option(
        None,
        "evaluate a sample of at most N queries, the same for every run on the dataset, or all (default: "
        "evaluate.final of the job)",
        group="rankings",
        value="N|auto|all",
    )
    baselines: bool = option(
        False,
        "rank by alternating least squares and EASE as well, with settings chosen on valid, in minutes; later "
        "evaluations on the dataset show them too",
        group="segments and comparison",
    )
    segments: tuple[str, ...] | None = option(
        None,
        "print metrics, diversity and novelty by segments of queries, and the inequality of exposure; with N, start "
        "segments at these numbers of interactions in train (default: thirds); with a context entity, such as hour, "
        "divide queries by its value",
        group="segments and comparison",
        value="N|CONTEXT",
        optional_values=True,
    )
    compare: Location | None = option(
        None,
        "compare recall and ndcg with those of another run, query by query, and test the difference",
        group="segments and comparison",
        value="OTHER_RUN",
    )
