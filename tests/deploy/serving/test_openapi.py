"""The server does what its OpenAPI description states, for valid and invalid requests that schemathesis generates."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from running_command import succeeded
from serving import running_server

from crossfade.deploy.serving.schemas import MAX_COMPARISONS

pytestmark = pytest.mark.slow
CONFIGURATION = """
hooks = "limits"

[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]
negative_data_rejection.expected-statuses = ["4xx"]
"""
"""A schema cannot state which conditions (400) and IDs (404) are valid, nor how large a body may be (413)."""

HOOKS = f"""
import schemathesis

@schemathesis.hook
def filter_case(context, case):
    body = case.body if isinstance(case.body, dict) else {{}}
    lists, k = body.get("ids", body.get("histories")), body.get("k", 10)
    if not body.get("diversity") or not isinstance(lists, list) or not isinstance(k, int | float):
        return True
    return len(lists) * k * 1000 <= {MAX_COMPARISONS}
"""
"""Nor can it state how many lists of which length diversity is for."""

EXAMPLES = 5


def test_every_response_is_as_described(tmp_path: Path) -> None:
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data", named=True), train={"epochs": 1})
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=tmp_path))
    program = Path(sys.executable).with_name("schemathesis")
    with running_server("run", cwd=tmp_path) as server:
        (tmp_path / "schemathesis.toml").write_text(CONFIGURATION, encoding="utf-8")
        (tmp_path / "limits.py").write_text(HOOKS, encoding="utf-8")
        options = ("--max-examples", str(EXAMPLES), "--seed", "1", "--phases", "examples,coverage,fuzzing")
        result = subprocess.run(
            [program, "--no-color", "run", f"{server.url}openapi.json", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stdout[-10_000:]
    generated, passed = re.findall(r"(\d+) generated, (\d+) passed\n", result.stdout)[0]
    assert generated == passed
    assert int(generated) > 500
