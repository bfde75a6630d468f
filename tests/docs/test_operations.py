"""docs/operations.md has each alert of the rules and each exit code of the code, and the rules lead to it."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from crossfade.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
KILLED = 128 + signal.SIGKILL
"""The exit code that a shell gives a command that is killed, which no code returns."""


def section(title: str) -> str:
    """Return the text below the heading of the second level ``title``."""
    [text] = re.findall(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def alerts() -> Iterator[dict[str, Any]]:
    """Yield the alert rules."""
    rules = yaml.safe_load((ROOT / "docker" / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    yield from (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule)


def test_page_has_each_alert_in_the_order_of_the_rules() -> None:
    parts = re.split(r"^### (\w+)$", section("Alerts"), flags=re.MULTILINE)
    assert parts[1::2] == [rule["alert"] for rule in alerts()]
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        assert re.findall(r"^\| \*\*(\w+)\*\* \| ", text, re.MULTILINE) == ["means", "look", "do"], name


def test_each_alert_rule_leads_to_its_heading() -> None:
    found = {rule["alert"]: rule["annotations"].get("runbook_url") for rule in alerts()}
    assert found == {name: f"docs/operations.md#{name.lower()}" for name in found}


def documented_codes() -> list[int]:
    """Return the exit codes of the page."""
    return [int(code) for code in re.findall(r"^\| (\d+) \| ", section("Errors and exit codes"), re.MULTILINE)]


def test_description_of_the_command_line_has_each_exit_code_it_returns() -> None:
    [codes] = re.findall(r"^Exit codes: (.*?)\n\n?\Z", str(main.__doc__), re.MULTILINE | re.DOTALL)
    described = {int(code) for code in re.findall(r"\b\d+\b", codes)}
    assert described == set(documented_codes()) - {KILLED}
