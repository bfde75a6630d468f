"""The Prometheus rules: valid, tested, documented, and only about metrics that exist."""

import re
from pathlib import Path

import pytest
from scraping import promtool

from crossfade.trainer.monitoring import names, thresholds

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "docker" / "prometheus"


def test_rules_are_valid_and_pass_promtool_tests() -> None:
    promtool("check", "rules", "rules.yml", cwd=RULES)
    assert "SUCCESS" in promtool("test", "rules", "rules.test.yml", cwd=RULES)


def test_documented_prometheus_configuration_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```yaml\n(# prometheus\.yml\n.*?)```", text, re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(block)
    (tmp_path / "rules.yml").write_bytes((RULES / "rules.yml").read_bytes())
    assert "21 rules found" in promtool("check", "config", "prometheus.yml", cwd=tmp_path)


def test_rules_use_known_metrics_and_alerts_are_tested_and_documented() -> None:
    rules, tests = ((RULES / name).read_text() for name in ("rules.yml", "rules.test.yml"))
    used = set(re.findall(r"(?<![\w:])crossfade_[a-z_]+", re.sub(r"(?m)^ *- record: .*$", "", rules)))
    known = {metric.name for metric in names.ALL} | {f"{names.PHASE_DURATION.name}_sum"}
    serving = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert used <= known | set(re.findall(r"(?m)^\| `(crossfade_serve_\w+)` \|", serving))
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    raised = set(re.findall(r"(?m)alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:\n", tests))
    assert alerts == raised
    quiet = set(re.findall(r"alertname: (\w+), eval_time: 20m, exp_alerts: \[\]", tests))
    assert alerts == quiet
    recorded = set(re.findall(r"- record: (\S+)", rules))
    assert recorded == set(re.findall(r"expr: '(\w+:crossfade_[\w:]+)'", tests))
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert alerts == set(re.findall(r"(?m)^### (Crossfade\w+)$", text))


def test_limits_in_the_rules_equal_the_thresholds() -> None:
    rules = (RULES / "rules.yml").read_text()
    expressions = {
        "CrossfadeStalled": rf"last_progress_timestamp_seconds\) > {thresholds.STALLED_SECONDS:g}\s",
        "CrossfadeRestarted": rf"\[{thresholds.RECENT_RESTART_SECONDS / 60:g}m\]",
        "CrossfadeCheckpointTooOld": (
            rf"> on \(run\) {thresholds.OVERDUE_CHECKPOINTS} \* .* \+ {thresholds.OVERDUE_SECONDS:g}\s"
        ),
        "CrossfadeMemoryNearLimit": rf"memory_limit_bytes < {thresholds.MIN_FREE_MEMORY_RATIO:g}\s",
        "CrossfadeRefreshStale": rf"\[3d\]\)\) > {thresholds.STALE_EVENTS_SECONDS:g}\s",
        "CrossfadeRoleDown": rf'job_state{{state=~"{"|".join(thresholds.ROLE_ALERT_STATES)}"}}',
    }
    alerts = {block.split("\n", 1)[0]: block for block in rules.split("- alert: ")[1:]}
    for alert, expression in expressions.items():
        assert re.search(expression, alerts[alert]), alert
