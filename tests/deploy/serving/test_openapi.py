"""The server does what its OpenAPI description states, for valid and invalid requests that schemathesis generates."""

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from running_command import succeeded
from serving import running_server

pytestmark = pytest.mark.slow

EXAMPLES = 25
"""For each operation; benchmarks/serving.py --schemathesis tries more."""


@pytest.fixture(scope="module")
def api_schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.schemas.BaseSchema]:
    folder = tmp_path_factory.mktemp("openapi")
    write_job(folder / "job.yaml", write_planted(folder / "data", named=True), train={"epochs": 1})
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder))
    with running_server("run", cwd=Path(folder)) as server:
        yield schemathesis.openapi.from_url(f"{server.url}openapi.json")


schema = schemathesis.pytest.from_fixture("api_schema")


@schema.parametrize()
@hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
def test_every_response_is_as_described(case: schemathesis.Case) -> None:
    case.call_and_validate()
