"""A worker whose processor gives it other kernels than the first worker's joins the job, which says so."""

import json
import platform
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from fault_runs import TOKEN
from needs import X86
from run_results import report_of
from running_command import crossfade, messages, started, succeeded

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(platform.machine() != "x86_64", reason=X86),
]


def variables(kernels: str) -> dict[str, str]:
    """Return the environment of a host whose processor has ``kernels``."""
    return {"CROSSFADE_TOKEN": TOKEN, "OPENBLAS_CORETYPE": kernels}


def test_worker_with_other_kernels_is_reported(tmp_path: Path, free_port: int) -> None:
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    coordinator = f"127.0.0.1:{free_port}"
    run, join = tmp_path / "run", ("agent", "--join", coordinator, "--advertise-address", "127.0.0.2")
    options = ("--servers", 1, "--workers", 2, "--run-dir", run)
    listen = ("--set", f"cluster.coordinator_address={coordinator}", "--set", "cluster.hosts=2")
    with started(*join, "--run-dir", run, cwd=tmp_path, variables=variables("Nehalem")) as agent:
        result = crossfade("train", "job.yaml", *options, *listen, cwd=tmp_path, variables=variables("Sandybridge"))
        lines = messages(succeeded(result).stderr)
        succeeded(agent.finish())
    first = report_of(run)["kernels"]
    reported = [line for line in lines if "other CPU kernels" in line]
    records = [json.loads(line) for line in (run / "processes.jsonl").read_text().splitlines()]
    events = [record for record in records if record["event"] == "kernels_differ"]
    [line], [event] = reported, events
    # Ranks are those of MXNet: either worker may be the first.
    assert {event["kernels"].split(",")[0], first.split(",")[0]} == {"OpenBLAS Nehalem", "OpenBLAS Sandybridge"}
    assert (event["expected"], event["worker"]) == (first, 1)
    assert f"worker 1 on {event['host']} has other CPU kernels ({event['kernels']}) than the first worker" in line
