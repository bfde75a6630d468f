"""``crossfade plan`` says beforehand what a run then does: rows and bytes of a step, keys, memory, whether it fits."""

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from cluster_data import write_job, write_planted
from running_command import crossfade, started, succeeded, wait_for_steps

from crossfade.commands.plan import bits_per_second
from crossfade.main import make_parser
from deploy.aws.instance_types import INSTANCES, find_instance
from deploy.capacity import machine as machine_module
from deploy.capacity import plan as capacity
from deploy.capacity.fit import check_fit
from deploy.capacity.machine import Machine
from deploy.capacity.memory import SERVER_BYTES, MemoryItem, ProcessPlan
from deploy.capacity.plan import CapacityPlan, format_gib, plan_capacity, read_inputs
from deploy.capacity.traffic import CountHistogram, busiest_bytes, expect_traffic, shares
from deploy.topology import Role
from kvstore.errors import InputError
from kvstore.io.folder import Folder
from kvstore.layout import make_layout
from trainer.config.loading import load_job
from trainer.config.schema import JobConfig
from trainer.data.reader import InteractionReader
from trainer.data.schedule import BatchSchedule
from trainer.data.vocabulary import Vocabulary
from trainer.model.batches import batches
from trainer.model.negatives import NegativeSampler
from trainer.prepare.synthetic import SyntheticSpec, write_synthetic

SERVER_TABLE_ROWS = 800_000
GIB = 2**30


@pytest.fixture(scope="module")
def zipf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Listening with popular and rare rows."""
    folder = tmp_path_factory.mktemp("zipf") / "data"
    write_synthetic(folder, SyntheticSpec(queries=4_000, items=3_000, interactions=60_000), seed=3)
    return folder


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A job, ``job.yaml``, on a little data."""
    return write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))


def zipf_job(folder: Path, data: Path, **sections: Any) -> JobConfig:
    train = {"batch_size": 1000, "epochs": 1, **sections.pop("train", {})}
    return load_job(write_job(folder / "job.yaml", data, train=train, **sections))


def plan_of(job: JobConfig) -> CapacityPlan:
    return plan_capacity(read_inputs(job).with_counts())


def rows_really_touched(job: JobConfig, data: Path) -> list[float]:
    """Rows of both tables that each worker touches a step, on average over an epoch of the job's own batches."""
    inputs = read_inputs(job)
    items = inputs.model.item
    counts_N = Vocabulary(Folder(data), inputs.manifest, items.name).counts()
    found = []
    with closing(InteractionReader(Folder(data), inputs.manifest)) as reader:
        schedule = BatchSchedule(
            reader,
            inputs.selection.groups,
            batch_size=job.train.batch_size,
            partitions=job.data.partitions,
            shuffle_block_rows=job.data.shuffle_block_rows,
            seed=1,
        )
        sampler = NegativeSampler(job.resolved_negatives(items.rows), items.rows, counts_N, seed=1)
        workers = job.cluster.workers
        for rank in range(workers):
            steps = batches(schedule, sampler, epoch=0, first_step=0, rank=rank, workers=workers)
            found.append(float(np.mean([len(step.query.rows_A) + len(step.item.rows_A) for step in steps])))
    return found


@pytest.mark.parametrize(
    "negatives",
    [
        {"kind": "shared", "count": 500, "sampling": "uniform"},
        {"kind": "shared", "count": 500, "sampling": "popularity", "power": 1.0},
        {"kind": "per_example", "count": 2, "sampling": "uniform"},
        {"kind": "per_example", "count": 2, "sampling": "popularity", "power": 0.5},
        {"kind": "in_batch", "count": 500, "sampling": "uniform"},
        {"kind": "mixed", "count": 500, "sampling": "uniform"},
        {"kind": "all", "count": 500, "sampling": "uniform"},
    ],
    ids=lambda spec: f"{spec['kind']} {spec['sampling']}",
)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_expected_rows_of_a_step_are_those_of_real_batches(
    tmp_path: Path, zipf: Path, negatives: dict[str, Any], workers: int
) -> None:
    cluster = {"servers": workers - 1, "workers": workers}
    job = zipf_job(tmp_path, zipf, negatives=negatives, cluster=cluster)
    traffic = plan_of(job).traffic
    assert traffic is not None
    assert not traffic.bound
    really = rows_really_touched(job, zipf)
    assert sum(traffic.rows) == pytest.approx(sum(really), rel=0.02)
    assert traffic.rows == pytest.approx(really, rel=0.05)


def test_a_vocabulary_that_counts_nothing_gives_a_bound(tmp_path: Path, zipf: Path) -> None:
    job = zipf_job(tmp_path, zipf)
    inputs = read_inputs(job)
    parts = shares(job, inputs.folder, inputs.manifest, inputs.selection.groups)
    empty = {table.name: CountHistogram.of([np.zeros(table.rows, np.int64)]) for table in inputs.model.tables}
    total = inputs.manifest.splits["train"].rows
    traffic = expect_traffic(job, inputs.manifest, inputs.model, parts, empty, total)
    assert traffic.bound
    [rows] = traffic.rows
    assert rows == pytest.approx(2 * total / -(-total // 1000) + 64)
    assert rows >= max(rows_really_touched(job, zipf))


def assert_as_planned(job: Path, cwd: Path, *shape: object) -> None:
    plan = json.loads(succeeded(crossfade("plan", job, "--json", *shape, cwd=cwd)).stdout)
    succeeded(crossfade("train", job, "--run-dir", "run", *shape, cwd=cwd))
    report = json.loads((cwd / "run" / "report.json").read_text())
    steps, traffic = report["steps"], plan["traffic"]
    assert traffic["rows"] == pytest.approx(report["rows_pulled"] / steps, rel=0.03)
    assert traffic["bytes_pulled"] == pytest.approx(report["bytes_pulled"] / steps, rel=0.03)
    assert traffic["bytes_pushed"] == pytest.approx(report["bytes_pushed"] / steps, rel=0.03)
    assert traffic["bytes_pushed_if_dense"] == report["bytes_pushed_if_dense"] // steps
    assert traffic["examples"] == pytest.approx(report["examples"] / steps)


@pytest.mark.slow
def test_a_run_in_process_moves_what_the_plan_said(planted: Path, tmp_path: Path) -> None:
    assert_as_planned(planted, tmp_path)


@pytest.mark.cluster
def test_a_run_on_servers_moves_what_the_plan_said(planted: Path, tmp_path: Path) -> None:
    assert_as_planned(planted, tmp_path, "--servers", 2, "--workers", 2)


@pytest.mark.parametrize("servers", [1, 2, 5])
def test_keys_are_those_of_the_layout(tmp_path: Path, zipf: Path, servers: int) -> None:
    job = zipf_job(tmp_path, zipf, cluster={"servers": servers, "max_key_bytes": 4096})
    inputs = read_inputs(job)
    layouts = make_layout(inputs.model.tables, servers, 4096)
    found = [(table.name, table.keys, table.key_rows) for table in plan_capacity(inputs).tables]
    assert found == [(layout.table.name, layout.keys, layout.key_shape[0]) for layout in layouts]
    assert layouts[0].keys > 10


@pytest.fixture(scope="module")
def idle_bytes(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Private memory of a server that holds next to nothing, and has nothing to compile."""
    folder = tmp_path_factory.mktemp("idle")
    job = write_job(folder / "job.yaml", write_planted(folder / "data"))
    succeeded(crossfade("train", job, "--run-dir", "first", "--servers", 1, cwd=folder))
    endless = ("--set", "train.epochs=1000000", "--set", "train.eval_every_epochs=1000000")
    with started("train", job, "--run-dir", "run", "--servers", 1, *endless, cwd=folder) as training:
        wait_for_steps(training, folder / "run")
        return memory_of(training.roles()["server-0"], "RssAnon")


@pytest.mark.cluster
def test_an_idle_server_takes_the_memory_that_a_plan_begins_with(idle_bytes: int) -> None:
    assert idle_bytes == pytest.approx(SERVER_BYTES, rel=0.25)


@pytest.mark.cluster
@pytest.mark.parametrize("servers", [1, 2])
def test_a_server_takes_the_memory_that_the_plan_said(tmp_path: Path, idle_bytes: int, servers: int) -> None:
    run, command = wide_run(tmp_path, "--servers", servers)
    plan = plan_of(load_job(tmp_path / "job.yaml", [f"cluster.servers={servers}"]))
    planned = {process.name: process for process in plan.processes}
    with started(*command, cwd=tmp_path) as training:
        wait_for_steps(training, run)
        roles = training.roles()
        for name in (f"server-{index}" for index in range(servers)):
            sure = [part for part in planned[name].parts if part.required]
            held = sum(part.bytes for part in sure if part.phase in {"always", "steps"}) - SERVER_BYTES
            # Not of libraries: the kernel counts what it happens to have of their files as resident.
            assert memory_of(roles[name], "RssAnon") - idle_bytes == pytest.approx(held, rel=0.12)
            peak = memory_of(roles[name], "VmHWM") - memory_of(roles[name], "RssFile") - idle_bytes
            assert peak == pytest.approx(planned[name].required_bytes - SERVER_BYTES, rel=0.12)


@pytest.mark.slow
def test_a_run_in_process_takes_the_memory_that_the_plan_said(tmp_path: Path) -> None:
    run, command = wide_run(tmp_path)
    [process] = plan_of(load_job(tmp_path / "job.yaml")).processes
    held = sum(part.bytes for part in process.parts if part.phase in {"always", "steps"} and part.required)
    with started(*command, cwd=tmp_path) as training:
        wait_for_steps(training, run)
        assert psutil.Process(training.process.pid).memory_info().rss == pytest.approx(held, rel=0.15)


def wide_run(folder: Path, *shape: object) -> tuple[Path, tuple[object, ...]]:
    """A job, ``job.yaml``, on tables of about 200 MB, and the command of an endless run of it, and the run's folder."""
    spec = SyntheticSpec(queries=SERVER_TABLE_ROWS, items=20_000, interactions=100_000, valid=0, test=0)
    write_synthetic(folder / "data", spec, seed=1)
    write_job(
        folder / "job.yaml",
        folder / "data",
        model={"dim": 64},
        optimizer={"kind": "rowwise_adagrad"},
        train={"batch_size": 4096, "epochs": 1_000_000, "eval_every_epochs": 1_000_000},
    )
    return folder / "run", ("train", "job.yaml", "--run-dir", "run", *shape)


def memory_of(process: psutil.Process, name: str) -> int:
    """A figure of ``/proc/PID/status`` in bytes: VmHWM, the most that was ever resident; RssAnon; RssFile."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name}")


def test_a_peak_is_of_what_is_held_at_one_time() -> None:
    always, start, steps = MemoryItem("tables", 100), MemoryItem("a key", 50, "start"), MemoryItem("rows", 20, "steps")
    evaluation, writer = MemoryItem("rankings", 30, "evaluation"), MemoryItem("a writer", 15, "checkpoint")
    copied = MemoryItem("changed pages", 40, "checkpoint", required=False)
    assert ProcessPlan("server-0", (always, start, steps)).required_bytes == 150
    assert ProcessPlan("server-0", (always, start, steps, evaluation, writer)).required_bytes == 150
    process = ProcessPlan("server-0", (always, start, steps, evaluation, writer, copied))
    assert (process.required_bytes, process.peak_bytes) == (150, 100 + 30 + 15 + 40)


@pytest.mark.parametrize("cluster", [{}, {"servers": 2, "workers": 2}], ids=["in process", "on servers"])
def test_a_plan_fits_just_as_long_as_there_is_memory_for_it(
    tmp_path: Path, zipf: Path, cluster: dict[str, Any]
) -> None:
    inputs = read_inputs(zipf_job(tmp_path, zipf, cluster=cluster)).with_counts()
    plan = plan_capacity(inputs)
    assert plan.required_bytes < plan.peak_bytes

    def verdict(available: int) -> str:
        return check_fit(inputs, plan, Machine("a machine", available)).verdict

    assert verdict(plan.peak_bytes) == "fits"
    assert verdict(plan.peak_bytes - 1) == verdict(plan.required_bytes) == "tight"
    assert verdict(plan.required_bytes - 1) == "does not fit"


def test_each_piece_of_advice_makes_the_job_fit_and_no_less_would(tmp_path: Path) -> None:
    spec = SyntheticSpec(queries=4_000, items=3_000, interactions=20_000, valid=0, test=0)
    write_synthetic(tmp_path / "data", spec, seed=3)
    job = zipf_job(
        tmp_path,
        tmp_path / "data",
        model={"dim": 65_536},
        optimizer={"kind": "adam"},
        negatives={"count": 8},
        train={"batch_size": 10, "save_embeddings": "none"},
        cluster={"servers": 1, "max_key_bytes": 2**26},
    )
    inputs = read_inputs(job)
    machine = Machine("a machine", 4 * GIB)
    fit = check_fit(inputs, plan_capacity(inputs), machine)
    assert fit.verdict == "does not fit"
    dim, optimizer, hosts = fit.advice
    assert dim.startswith("lower model.dim to ")
    assert optimizer == "set optimizer.kind to rowwise_adagrad"
    lower, few = int(dim.split()[-1]), int(hosts.removeprefix("share it out over ").split()[0])

    def verdict(*settings: str) -> str:
        other = inputs.of(load_job(tmp_path / "job.yaml", settings))
        return check_fit(other, plan_capacity(other), machine).verdict

    assert verdict(f"model.dim={lower}") == "fits"
    assert verdict(f"model.dim={2 * lower}") != "fits"
    assert verdict("optimizer.kind=rowwise_adagrad") == "fits"
    assert verdict(f"cluster.hosts={few}", f"cluster.servers={few}") == "fits"
    assert verdict(f"cluster.hosts={few - 1}", f"cluster.servers={few - 1}") != "fits"


@pytest.mark.slow
def test_train_refuses_what_does_not_fit_with_the_figures_of_the_plan(planted: Path, tmp_path: Path) -> None:
    wide = ("--servers", 2, "--set", "model.dim=200000000")
    planned = crossfade("plan", planted, "--json", *wide, cwd=tmp_path)
    assert planned.returncode == 1, planned.stderr
    plan = json.loads(planned.stdout)
    refused = crossfade("train", planted, "--run-dir", "run", *wide, cwd=tmp_path)
    assert refused.returncode == 2
    assert f"all processes of a host {format_gib(plan['hosts'][0]['sure_bytes'])}, but " in refused.stderr
    for table in plan["tables"]:
        assert format_gib(table["weights_bytes"] + table["state_bytes"]) in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_job_that_may_not_fit_is_warned_of_and_one_that_cannot_is_refused(
    tmp_path: Path, zipf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = zipf_job(tmp_path, zipf, cluster={"servers": 2, "workers": 2})
    plan = plan_of(job)
    for available, warned in ((plan.peak_bytes, False), (plan.required_bytes, True)):
        monkeypatch.setattr(machine_module, "available_bytes", lambda: available)  # noqa: B023 - called before it changes
        warning = capacity.check_fits_this_machine(read_inputs(job))
        assert (warning is not None) == warned
    assert (
        f"this may take up to {format_gib(plan.peak_bytes)}, but {format_gib(plan.required_bytes)} are free here"
        in str(warning)
    )
    monkeypatch.setattr(machine_module, "available_bytes", lambda: plan.required_bytes - 1)
    with pytest.raises(InputError, match=f"all processes of a host {format_gib(plan.required_bytes)}, but "):
        capacity.check_fits_this_machine(read_inputs(job))


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command prints of a job that fits."""
    parsed = make_parser().parse_args(["plan", *map(str, arguments)])
    assert parsed.run(parsed) == 0
    return capsys.readouterr().out


def test_a_plan_for_people_names_every_process_and_what_it_costs(
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


def test_bytes_on_the_wire_are_those_of_the_busiest_card(tmp_path: Path, zipf: Path) -> None:
    traffic = plan_of(zipf_job(tmp_path, zipf, cluster={"servers": 2, "workers": 2})).traffic
    assert traffic is not None
    servers, workers = ([Role(kind, index) for index in range(2)] for kind in ("server", "worker"))  # type: ignore[arg-type]
    row = 2 * (8 + 4 + traffic.dim * 4) + 8
    assert busiest_bytes(traffic, [[*servers, *workers]]) == 0
    apart = busiest_bytes(traffic, [servers, workers])
    assert apart == pytest.approx(sum(traffic.rows) * row)
    four = busiest_bytes(traffic, [[role] for role in (*servers, *workers)])
    assert four == pytest.approx(max(*traffic.rows, sum(traffic.rows) / 2) * row)
    paired = busiest_bytes(traffic, [list(pair) for pair in zip(servers, workers, strict=True)])
    assert paired == pytest.approx(max(traffic.rows) / 2 * row)


@pytest.mark.parametrize(
    ("text", "bits"),
    [("10Gbit", 10e9), ("500Mbit", 5e8), ("1.25GB", 10e9), ("10 Gbit/s", 10e9), ("25Gbps", 25e9), ("100kB/s", 8e5)],
)
def test_bandwidths_are_read_as_people_write_them(text: str, bits: float) -> None:
    assert bits_per_second(text) == bits


@pytest.mark.parametrize("text", ["10", "fast", "0Gbit", "-1Gbit", "10Gb it", ""])
def test_a_bandwidth_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a number and a unit"):
        bits_per_second(text)


def test_instances_are_found_by_name() -> None:
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
        (("--instance-type", "p9.huge"), "--instance-type p9.huge: not a type that is known here"),
        (("--bandwidth", "10"), "--bandwidth 10: expected a number and a unit"),
        (("--hosts", 2), "2 hosts need servers that hold the tables"),
    ],
)
def test_wrong_options_are_refused(planted: Path, arguments: tuple[object, ...], message: str) -> None:
    parsed = make_parser().parse_args(["plan", str(planted), *map(str, arguments)])
    with pytest.raises(InputError, match=re.escape(message)):
        parsed.run(parsed)


def test_where_nothing_helps_no_advice_is_given(tmp_path: Path, zipf: Path) -> None:
    inputs = read_inputs(zipf_job(tmp_path, zipf, optimizer={"kind": "sgd"}))
    fit = check_fit(inputs, plan_capacity(inputs), Machine("a tiny machine", 2**20))
    assert (fit.verdict, fit.advice) == ("does not fit", ())
