"""Read the metrics of processes, and check them with promtool."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import needs
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


def ask(address: str, path: str) -> tuple[int, str]:
    """Return the status and the body of an answer."""
    answer = requests.get(f"http://{address}{path}", timeout=60)
    return answer.status_code, answer.content.decode()


def scrape(address: str) -> str:
    """Return the answer of /metrics."""
    status, text = ask(address, "/metrics")
    assert status == 200, text
    return text


def targets(address: str) -> dict[str, str]:
    """Return the address of each process of a job, by name."""
    status, text = ask(address, "/targets")
    assert status == 200, text
    return {each["labels"]["process"]: each["targets"][0] for each in json.loads(text)}


def families(text: str) -> set[str]:
    """Return the names of metrics as the table lists them: counters with ``_total``."""
    families = text_string_to_metric_families(text)
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return labels and value of every series, by name."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(text: str, name: str, **labels: str) -> float:
    """Return the sum of the series ``name`` with ``labels``; there must be at least one."""
    matching = [number for given, number in samples(text).get(name, []) if labels.items() <= given.items()]
    assert matching, f"no {name} with {labels}"
    return sum(matching)


def installed(tool: str, package: str = "prometheus") -> str:
    """Return the path of a program of Debian's ``package``. Without it, skip the test; in CI, fail."""
    path = shutil.which(tool)
    if path is None:
        missing = needs.package(tool, package)
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path


def promtool(*arguments: object, given: str | None = None, cwd: Path | None = None) -> str:
    """Run promtool, which must succeed; return its output."""
    tool = installed("promtool")
    result = subprocess.run(
        [tool, *map(str, arguments)], input=given, cwd=cwd, capture_output=True, text=True, check=False, timeout=240
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    return output


def assert_valid_metrics(text: str) -> None:
    """Assert that promtool accepts metrics, and that its linter reports nothing."""
    assert promtool("check", "metrics", given=text) == ""
