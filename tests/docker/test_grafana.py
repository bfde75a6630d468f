"""Grafana's dashboards: against its published models, and against a real Prometheus that scraped a real run."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from cluster_data import write_job, write_planted
from grafana_dashboards import GRAFANA, NAMES, Json, Query, annotations, load, metrics_in, panels, queries
from metric_groups import TABLES, make_job
from paced_training import metrics_address, paced
from prometheus_server import Prometheus, running_prometheus
from recorded_service import write_versions
from running_command import succeeded
from scraping import promtool
from waiting import wait_until

from crossfade.deploy.refresh.metrics import RefreshMetrics
from crossfade.trainer.monitoring import names
from crossfade.trainer.monitoring.http import MetricsEndpoint, serve_metrics
from crossfade.trainer.monitoring.registry import ProcessMetrics
from crossfade.trainer.training.worker_metrics import TrainingMetrics

CONFIG = GRAFANA.parent / "prometheus" / "prometheus.yml"
RULES = CONFIG.with_name("rules.yml")
SCRAPE_SECONDS = 1
DIVERGED, VANISHED = "diverged", "vanished"
"""Runs of simulated processes: one with the alerts and GPU metrics that a healthy run without GPU lacks, and one that
vanishes before its end."""
FRESH = "fresh"
"""A service with recorded versions."""
ONLY_IN_DIVERGED_RUN = {("overview", "Alerts"), ("overview", "Alerts by name"), ("training", "GPU memory")}
NEVER_IN_A_HEALTHY_RUN = {"Restarts"}
NOT_SHOWN = {"crossfade_process_virtual_memory_bytes", "crossfade_process_start_time_seconds"}


def run_of(query: Query) -> str:
    """Return the run that ``query`` is sent for."""
    if "crossfade_refresh_" in query.expression:
        return FRESH
    return DIVERGED if (query.dashboard, query.title) in ONLY_IN_DIVERGED_RUN or query.title == "Alerts" else "planted"


# ---- the files


def test_every_query_uses_the_selected_data_source_and_run() -> None:
    for name in NAMES:
        for panel in panels(load(name)):
            for asked in (panel, *panel["targets"]):
                assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for query in [*queries(), *annotations()]:
        selectors = re.findall(r"\{([^}]*)\}", query.expression)
        assert selectors, query
        assert all('run=~"$run"' in selector for selector in selectors), query
        assert re.search(r"(rate|increase)\([^[]*\[(?!\$__rate_interval\])", query.expression) is None, query


def test_queries_use_all_metrics_and_no_unknown_ones() -> None:
    records = {rule["record"] for rule in rules() if "record" in rule}
    series = {"up", "ALERTS"} | records
    for metric in names.ALL:
        endings = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        series |= {f"{metric.name}{ending}" for ending in endings}
    asked = {query: metrics_in(query.expression) for query in [*queries(), *annotations()]}
    assert {query: found - series for query, found in asked.items() if not found or found - series} == {}
    # A panel with a recording rule shows the metrics of the rule.
    shown = set().union(*asked.values())
    shown |= {word for rule in rules() if rule.get("record") in shown for word in metrics_in(rule["expr"])}
    hidden = {metric.name for metric in names.ALL if not any(found.startswith(metric.name) for found in shown)}
    assert hidden == NOT_SHOWN


def rules() -> list[Json]:
    """Read all rules."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_provisioned_files_are_consistent() -> None:
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/crossfade.yaml").read_text())["providers"]
    config = yaml.safe_load(CONFIG.read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    assert provider["folder"] == "Crossfade"
    for name in NAMES:
        [chosen, _] = load(name)["templating"]["list"]
        assert (chosen["query"], chosen["current"]["value"]) == (source["type"], source["uid"])


def test_prometheus_configuration_is_valid() -> None:
    assert "is valid prometheus config" in promtool("check", "config", CONFIG)


# ---- a run


def config_of_test(run: str, **others: MetricsEndpoint) -> Json:
    """Return the shipped configuration with short intervals, for the processes of ``run`` and of ``others`` by run."""
    config: Json = yaml.safe_load(CONFIG.read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    config["rule_files"] = [str(CONFIG.with_name(name)) for name in config["rule_files"]]
    [crossfade] = [each for each in config["scrape_configs"] if each["job_name"] == "crossfade"]
    [discovery] = crossfade["http_sd_configs"]
    discovery |= {"url": f"http://{run}/targets", "refresh_interval": f"{SCRAPE_SECONDS}s"}
    crossfade["static_configs"] = [
        {"targets": [other.address], "labels": {"run": name, "process": "in-process"}} for name, other in others.items()
    ]
    config["scrape_configs"] = [crossfade]
    return config


def simulated_process(run: str) -> ProcessMetrics:
    """Return metrics of a run in process on a GPU; that of ``DIVERGED`` has diverged."""
    metrics = ProcessMetrics(run, "in-process")
    training = TrainingMetrics(make_job(), TABLES, rank=0)
    training.watch_gpu(lambda: (15 << 30, 16 << 30))
    if run == DIVERGED:
        training.mark_diverged()
    metrics.register("training", training)
    metrics.set_identity(0)
    return metrics


def refreshing_process(folder: Path) -> ProcessMetrics:
    """Return metrics of a process that refreshes a service, of which two versions are recorded."""
    service = write_versions(folder, {}, {})
    service.find_arrivals()
    metrics = ProcessMetrics(FRESH, "refresh")
    metrics.register("refresh", RefreshMetrics(service))
    metrics.set_identity()
    return metrics


class Scraped:
    """A Prometheus, and the queries that it has returned no data for."""

    def __init__(self, prometheus: Prometheus, begin: float) -> None:
        self.prometheus = prometheus
        self._begin = begin
        self.without_data = [*queries(), *(each for each in annotations() if each.title not in NEVER_IN_A_HEALTHY_RUN)]

    def has_all(self) -> bool:
        """Send these queries again."""
        self.without_data = [query for query in self.without_data if not self._has_data(query)]
        return not self.without_data

    def _has_data(self, query: Query) -> bool:
        values = query.ask(self.prometheus, run_of(query), self._begin, time.time(), SCRAPE_SECONDS)
        return any(value == value for value in values)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """Yield a Prometheus that has scraped a run on two servers and two workers."""
    folder, begin = tmp_path_factory.mktemp("grafana"), time.time()
    train = {"epochs": 30, "eval_every_epochs": 1}
    job = write_job(folder / "job.yaml", write_planted(folder / "data"), train=train, checkpoint={"interval_steps": 20})
    with ExitStack() as stack:
        diverged_endpoint = stack.enter_context(serve_metrics(simulated_process(DIVERGED), 0, None, "127.0.0.1"))
        fresh_endpoint = stack.enter_context(serve_metrics(refreshing_process(folder), 0, None, "127.0.0.1"))
        temporary = ExitStack()
        vanished_endpoint = stack.enter_context(temporary).enter_context(
            serve_metrics(simulated_process(VANISHED), 0, None, "127.0.0.1")
        )
        training = stack.enter_context(paced("train", job, "--servers", 2, "--workers", 2, run_dir=folder / "run"))
        endpoints = {DIVERGED: diverged_endpoint, VANISHED: vanished_endpoint, FRESH: fresh_endpoint}
        config = config_of_test(metrics_address(training), **endpoints)
        answers = Scraped(stack.enter_context(running_prometheus(folder / "prometheus", config)), begin)
        training.wait_for("checkpoint_saved")
        training.wait_for("epoch")
        deadline = time.monotonic() + 30
        training.wait(lambda: answers.has_all() or time.monotonic() > deadline, "an answer to each query")
        temporary.close()
        succeeded(training.finish())
        yield answers


@pytest.mark.cluster
def test_every_query_of_every_panel_has_data(scraped: Scraped) -> None:
    assert list(map(str, scraped.without_data)) == []


@pytest.mark.cluster
def test_run_variable_lists_runs_and_annotation_queries_are_valid(scraped: Scraped) -> None:
    for name in NAMES:
        [_, run] = load(name)["templating"]["list"]
        label = re.fullmatch(r"label_values\((\w+), (\w+)\)", run["query"]["query"])
        assert label is not None
        label_values = scraped.prometheus.ask(f"label/{label[2]}/values", **{"match[]": label[1]})
        assert sorted(label_values) == sorted([DIVERGED, FRESH, VANISHED, "planted"])
    for query in annotations():
        query.ask(scraped.prometheus, run["allValue"], time.time() - 60, time.time(), SCRAPE_SECONDS)


@pytest.mark.cluster
def test_prometheus_sees_the_end_of_a_run_and_alerts_on_a_vanished_one(scraped: Scraped) -> None:
    def ask(expression: str) -> list[Json]:
        found: list[Json] = scraped.prometheus.ask("query", query=expression)["result"]
        return found

    wait_until(lambda: ask('up{process="coordinator"} == 0'), "the coordinator to be down")
    assert ask('last_over_time(crossfade_job_state{run="planted", state="done"}[1h]) == 1')
    assert ask('ALERTS{run="planted", alertname=~"CrossfadeCoordinatorDown|CrossfadeRoleDown"}') == []
    # A minute later it would be firing.
    wait_until(
        lambda: ask(f'ALERTS{{run="{VANISHED}", alertname="CrossfadeCoordinatorDown"}}'),
        "the alert on the vanished run",
    )
