"""The Grafana dashboards, and the queries that they send to Prometheus."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_server import Prometheus

GRAFANA = Path(__file__).resolve().parents[2] / "docker" / "grafana"
NAMES = ("overview", "training", "servers", "data")
Json = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """One query: of a panel, or of an annotation."""

    dashboard: str
    title: str
    expression: str
    instant: bool

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.title}: {self.expression}"

    def ask(self, prometheus: Prometheus, run: str, begin: float, end: float, scrape_seconds: int) -> list[float]:
        """Return all values for ``run`` between two Unix times."""
        text = self.expression
        for variable, value in {
            "$run": run,
            "$__rate_interval": f"{4 * scrape_seconds}s",  # Grafana's minimum: four scrapes
        }.items():
            text = text.replace(variable, value)
        assert "$" not in text, f"unknown variable: {self}"
        if self.instant:
            return [float(each["value"][1]) for each in prometheus.ask("query", query=text, time=end)["result"]]
        series = prometheus.ask("query_range", query=text, start=begin, end=end, step=scrape_seconds)["result"]
        return [float(value) for each in series for _, value in each["values"]]


def load(name: str) -> Json:
    """Read a dashboard."""
    dashboard: Json = json.loads((GRAFANA / "dashboards" / f"{name}.json").read_text(encoding="utf-8"))
    return dashboard


def panels(dashboard: Json) -> list[Json]:
    """Return its panels except rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    """Yield the queries of all panels."""
    for name in NAMES:
        for panel in panels(load(name)):
            for target in panel["targets"]:
                yield Query(name, panel["title"], target["expr"], target["instant"])


def annotations() -> Iterator[Query]:
    """Yield the queries of all annotations."""
    for name in NAMES:
        for annotation in load(name)["annotations"]["list"]:
            yield Query(name, annotation["name"], annotation["expr"], instant=False)


def metrics_in(expression: str) -> set[str]:
    """Return the names of series in a PromQL expression."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|ignoring|on|group_left) *\([^)]*\)", " ", expression)
    return set(re.findall(r"[a-zA-Z_:][\w:]*\b(?! *\()", bare))
