"""Asking processes for their metrics, and having their values checked by promtool."""

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


def ask(address: str, path: str) -> tuple[int, str]:
    """Status and body of an answer."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(address: str) -> str:
    """What /metrics answers."""
    status, text = ask(address, "/metrics")
    assert status == 200, text
    return text


def targets(address: str) -> dict[str, str]:
    """Where each process of a job listens, by its name."""
    status, text = ask(address, "/targets")
    assert status == 200, text
    return {each["labels"]["process"]: each["targets"][0] for each in json.loads(text)}


def families(text: str) -> set[str]:
    """The names of metrics, as they stand in the table: counters with ``_total``."""
    found = text_string_to_metric_families(text)
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in found}


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Labels and value of every series, by the series' name."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(text: str, name: str, **labels: str) -> float:
    """The sum of the series of a name that have these labels, of which there must be one."""
    matching = [number for given, number in samples(text).get(name, []) if labels.items() <= given.items()]
    assert matching, f"no {name} with {labels}"
    return sum(matching)


def installed(tool: str) -> str:
    """The path of a program of Debian's package ``prometheus``; where it is not there, skip, or in CI fail."""
    path = shutil.which(tool)
    if path is None:
        missing = f"{tool} is not installed: apt-get install prometheus"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path


def promtool(*arguments: object, given: str | None = None, cwd: Path | None = None) -> str:
    """Run promtool, which must find nothing wrong; gives what it says."""
    tool = installed("promtool")
    done = subprocess.run(
        [tool, *map(str, arguments)], input=given, cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def no_complaints(text: str) -> None:
    """Have promtool judge metrics: by its linter too, whose complaints are exit codes of their own."""
    said: Any = promtool("check", "metrics", given=text)
    assert said == ""
