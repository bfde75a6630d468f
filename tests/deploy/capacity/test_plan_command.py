"""The output and the options of ``crossfade plan``."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cluster_data import write_job

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.cli.main import make_parser
from crossfade.deploy.aws.instance_types import INSTANCES, find_instance
from crossfade.deploy.capacity.options import bits_per_second
from crossfade.deploy.capacity.plan_inputs import expected_inputs
from crossfade.deploy.cluster import store_choice
from crossfade.trainer.config.loading import make_job
from crossfade.trainer.data.manifest import read_manifest

GIB = 2**30
EXPECTED = ("--queries", "1e6", "--items", 200_000, "--interactions", "100_000_000")


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return what the command prints about a job that fits."""
    parsed = make_parser().parse_args(["plan", *map(str, arguments)])
    assert parsed.run(parsed) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_printed_plan_names_every_process_and_its_memory(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ("--servers", 2, "--workers", 2, "--hosts", 2, "--instance-type", "g4dn.xlarge")
    printed = planned(capsys, planted, *shape)
    assert "planted: 2 servers, 2 workers, 2 hosts" in printed
    for line in ("scheduler ", "server-0 to 1, each ", "host 1: train, server-1, worker-1 "):
        assert f"\n{line}" in printed
    assert "ms a step at 5 Gbit/s lasting, 25 for a while" in printed
    assert "\nFITS: the fullest host needs " in printed
    assert "no figure is published for p2.xlarge" in planned(capsys, planted, *shape, "--instance-type", "p2.xlarge")
    assert "use its loopback" in planned(capsys, planted, *shape, "--hosts", 1)
    assert "on the wire" not in planned(capsys, planted)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "job.yaml"}


@pytest.mark.slow
def test_plan_of_workers_that_hold_the_tables_has_no_servers_and_no_keys(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ("--set", "cluster.store=sharded", "--workers", 4, "--hosts", 2, "--bandwidth", "10Gbit")
    printed = planned(capsys, planted, *shape)
    assert "planted: 4 workers, which hold the tables, 2 hosts" in printed
    for line in (
        "host 0: train, worker-0, worker-2 ",
        "  customer: weights of 75 rows ",
        "  rows sent to other workers ",
    ):
        assert f"\n{line}" in printed
    assert not re.search(r"server|scheduler|keys pushed", printed)
    found = json.loads(planned(capsys, planted, "--json", *shape))
    assert [table["keys"] for table in found["tables"]] == [0, 0]
    assert found["time"]["step_seconds"] > 0


@pytest.mark.slow
def test_without_mxnet_servers_are_planned_as_workers_that_hold_the_tables(
    planted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_choice, "find_spec", lambda _name: None)
    assert "planted: 3 workers, which hold the tables, one host" in planned(
        capsys, planted, "--servers", 2, "--workers", 3
    )


@pytest.mark.slow
def test_time_of_a_step_follows_from_cores_and_bandwidth(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def time_of(*arguments: object) -> Any:
        return json.loads(planned(capsys, planted, "--json", *arguments))["time"]

    servers = ("--servers", 2, "--workers", 2)
    assert time_of(*servers, "--cores", 1)["step_seconds"] > time_of(*servers, "--cores", 64)["step_seconds"]
    fast, slow = (time_of(*servers, "--hosts", 2, "--cores", 64, "--bandwidth", rate) for rate in ("10Gbit", "1Mbit"))
    assert slow["step_seconds"] > 10 * fast["step_seconds"]
    assert fast["epoch_seconds"] > fast["step_seconds"]
    assert time_of(*servers, "--hosts", 2) is None, "without a bandwidth"
    assert time_of("--set", "train.engine=mxnet") is None
    assert re.search(r"\ntime: about [0-9.]+ ms a step .* with 3 cores a host", planned(capsys, planted, "--cores", 3))


@pytest.mark.slow
def test_evaluation_follows_the_sample(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = "held-out and excluded items"

    def plan_of(queries: object, final: object) -> tuple[int, float, int]:
        settings = ("--set", f"evaluate.max_queries={queries}", "--set", f"evaluate.final={final}")
        found = json.loads(planned(capsys, planted, "--json", *settings))
        parts = {part["what"]: part["bytes"] for process in found["processes"] for part in process["parts"]}
        return *(found["time"][f"evaluat{name}"] for name in ("ed_queries", "ion_seconds")), parts[kept]

    queries, seconds, pairs = plan_of("all", "all")
    assert plan_of("auto", "auto") == (queries, seconds, pairs), "fewer queries than the least sample"
    sampled, sampled_seconds, sampled_pairs = plan_of(queries // 10, queries // 10)
    assert sampled == queries // 10 > 10
    assert (sampled_seconds, sampled_pairs) == pytest.approx((seconds / 10, pairs / 10), rel=0.1)
    assert plan_of(sampled, "all") == (sampled, sampled_seconds, pairs), "test has more queries than valid"
    printed = planned(capsys, planted, "--set", f"evaluate.max_queries={sampled}")
    assert f"an evaluation, of {sampled} queries at most, " in printed


def test_dataset_that_does_not_exist_is_planned_by_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = write_job(tmp_path / "job.yaml", tmp_path / "no data")
    with pytest.raises(InputError, match="no such file; expected a folder written by 'crossfade prepare"):
        planned(capsys, job)
    plan = json.loads(planned(capsys, job, "--json", *EXPECTED, "--servers", 2, "--workers", 2))
    assert {table["name"]: table["rows"] for table in plan["tables"]} == {"query": 1_000_000, "item": 200_000}
    assert plan["time"]["evaluated_queries"] == 0, "it has no valid split"
    assert plan["time"]["epoch_seconds"] == pytest.approx(100e6 / plan["time"]["examples_per_second"])
    printed = planned(capsys, job, *EXPECTED, "--set", "data.query=customer")
    assert "\nA STEP (at most: how often each row occurs is unknown)\n" in re.sub(" +\n", "\n", printed)
    assert re.search(r"\ncustomer +1,000,000 ", printed)
    with pytest.raises(InputError, match="no such feature of item"):
        planned(capsys, job, *EXPECTED, "--set", "model.item_features=[item, artist]")


def test_stages_are_divided_among_hosts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = write_job(tmp_path / "job.yaml", tmp_path / "no data")

    def stages_of(*arguments: object) -> dict[str, dict[str, float]]:
        found = json.loads(planned(capsys, job, "--json", *EXPECTED, *arguments))["stages"]
        return {stage["name"]: stage for stage in found}

    of_hosts = ("--instance-type", "r6i.4xlarge", "--workers", 4, "--hosts")
    two, four = stages_of(*of_hosts, 2), stages_of(*of_hosts, 4)
    assert list(two) == ["prepare", "train", "evaluate", "index", "recommend"]
    for name, stage in two.items():
        divided = 1 if stage["hosts"] == 1 else 2
        assert (stage["hosts"] == 1) == (name in ("prepare", "index"))
        if name != "train":
            assert four[name]["seconds"] == pytest.approx(stage["seconds"] / divided)
    # 1 million queries times 200,000 items of 8 columns, at 27 GFLOP/s on each of 2 x 16 cores
    assert two["recommend"]["seconds"] == pytest.approx(2 * 1e6 * 2e5 * 8 / 27e9 / 32)
    assert two["index"]["bytes"] > two["recommend"]["bytes"] > 200_000 * 8 * 4
    printed = planned(capsys, job, *EXPECTED, *of_hosts, 2)
    assert re.search(r"\nrecommend  to 1,000,000 queries, exactly +2 +3.7 s +[0-9.]+ MiB\n", printed)


def test_expected_size_predicts_the_plan_of_the_dataset(
    zipf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path / "job.yaml", zipf)
    manifest = read_manifest(Folder(zipf))
    size = ("--queries", 4_000, "--items", 3_000, "--interactions", manifest.splits["train"].rows)
    known, expected = (json.loads(planned(capsys, job, "--json", *more)) for more in ((), size))
    for field in ("rows", "weights_bytes", "state_bytes"):
        assert [table[field] for table in known["tables"]] == [table[field] for table in expected["tables"]]
    [host], [expected_host] = known["hosts"], expected["hosts"]
    assert expected_host["required_bytes"] == pytest.approx(host["required_bytes"], rel=0.05)
    for seen, bound in zip(known["traffic"]["tables"], expected["traffic"]["tables"], strict=True):
        assert sum(bound["rows"]) >= sum(seen["rows"])


def test_expected_size_is_planned_as_prepare_orders_it() -> None:
    job = make_job("{name: plays, data: {path: nowhere}}", "a test", [])
    planned_job = expected_inputs(job, queries=30_000, items=41_000, interactions=800_000).job
    assert (planned_job.negatives.kind, planned_job.data.group) == ("all", "all")


@pytest.mark.parametrize(
    ("text", "bits"),
    [("500Mbit", 5e8), ("1.25GB", 10e9), ("10 Gbit/s", 10e9), ("25Gbps", 25e9), ("100kB/s", 8e5)],
)
def test_bandwidth_units_are_parsed(text: str, bits: float) -> None:
    assert bits_per_second(text) == bits


@pytest.mark.parametrize("text", ["10", "0Gbit", "-1Gbit", "10Gb it", ""])
def test_invalid_bandwidth_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number and a unit"):
        bits_per_second(text)


def test_instance_types_are_found_by_name() -> None:
    assert find_instance("p2.8xlarge").memory_gib == 488
    assert find_instance("p2.xlarge").bits_per_second is None
    with pytest.raises(InputError, match=r"did you mean 'r6i\.4xlarge'"):
        find_instance("r6i.4xlarg")
    for instance in INSTANCES.values():
        assert 0.9 < instance.usable_bytes / (instance.memory_gib * GIB) < 1
        assert (instance.baseline_gbit or 0) <= (instance.peak_gbit or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--instance-type", "p9.huge"), "instance_type p9.huge: unknown type; known types are"),
        (("--servers", 2, "--instance-type", "r7g.large"), "the job has 2 servers, but r7g.large has an Arm processor"),
        (("--bandwidth", "10"), "bandwidth 10: expected a number and a unit"),
        (("--hosts", 2), "2 hosts need servers, or several workers, that hold the tables"),
        (("--queries", "1e6", "--items", 10), "interactions: is missing; give queries, items and interactions, or"),
        (("--queries", 0, "--items", 10, "--interactions", 10), "queries 0: expected an integer from 1"),
    ],
)
def test_invalid_options_are_rejected(planted: Path, arguments: tuple[object, ...], message: str) -> None:
    parsed = make_parser().parse_args(["plan", str(planted), *map(str, arguments)])
    with pytest.raises(InputError, match=re.escape(message)):
        parsed.run(parsed)
