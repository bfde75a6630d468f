"""Planned memory against that of real processes."""

from pathlib import Path

import psutil
import pytest
from cluster_data import write_job
from needs import TORCH
from running_command import crossfade, started, succeeded, wait_for_steps

from crossfade.deploy.capacity.plan import plan_capacity
from crossfade.deploy.capacity.plan_inputs import read_inputs
from crossfade.deploy.capacity.process_memory import RANK_BYTES, SERVER_BYTES, MemoryItem, ProcessPlan
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.prepare.options import SyntheticSpec
from crossfade.trainer.prepare.synthetic import write_synthetic


def processes(job: Path, *settings: str) -> dict[str, ProcessPlan]:
    """Return the planned processes by name."""
    return {process.name: process for process in plan_capacity(read_inputs(load_job(job, settings))).processes}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write ``job.yaml``, which trains tables of about 200 MB without an end."""
    folder = tmp_path_factory.mktemp("wide")
    spec = SyntheticSpec(queries=800_000, items=20_000, interactions=100_000, valid=0, test=0)
    write_synthetic(folder / "data", spec, seed=1)
    return write_job(
        folder / "job.yaml",
        folder / "data",
        model={"dim": 64},
        optimizer={"kind": "rowwise_adagrad"},
        train={"batch_size": 4096, "epochs": 1_000_000, "eval_every_epochs": 1_000_000},
    )


@pytest.mark.cluster
@pytest.mark.usefixtures("compiled")
def test_server_memory_equals_the_plan(tmp_path: Path, wide: Path) -> None:
    planned = processes(wide, "cluster.servers=2")
    with started("train", wide, "--run-dir", "run", "--servers", 2, cwd=tmp_path) as training:
        wait_for_steps(training, tmp_path / "run")
        roles = training.roles()
        for name in ("server-0", "server-1"):
            required = [part for part in planned[name].parts if part.required]
            held = sum(part.bytes for part in required if part.phase in {"always", "steps"})
            assert held > 2 * SERVER_BYTES, "mostly tables"
            # Without libraries: the kernel counts whatever pages of their files are cached as resident.
            assert memory_of(roles[name], "RssAnon") == pytest.approx(held, rel=0.15)
            peak = memory_of(roles[name], "VmHWM") - memory_of(roles[name], "RssFile")
            assert peak == pytest.approx(planned[name].required_bytes, rel=0.15)


@pytest.mark.cluster
@pytest.mark.usefixtures("compiled")
def test_memory_of_a_worker_that_holds_tables_equals_the_plan(tmp_path: Path, wide: Path) -> None:
    held = ("cluster.store=sharded", "cluster.workers=2")
    planned = processes(wide, *held)
    with started(
        "train", wide, "--run-dir", "run", *(f"--set={setting}" for setting in held), cwd=tmp_path
    ) as training:
        wait_for_steps(training, tmp_path / "run")
        roles = training.roles()
        assert sorted(roles) == ["worker-0", "worker-1"]
        for name, role in roles.items():
            required = [part for part in planned[name].parts if part.required]
            expected = sum(part.bytes for part in required if part.phase in {"always", "steps"})
            assert expected > 2 * RANK_BYTES, "mostly tables"
            # Both map the rows that they send each other, so each counts for half of them.
            own = memory_of(role, "Pss_Anon", "smaps_rollup") + memory_of(role, "Pss_Shmem", "smaps_rollup")
            assert own == pytest.approx(expected, rel=0.12)


@pytest.fixture(scope="module")
def compiled(wide: Path) -> None:
    """Compile the kernels, once on a machine: it takes memory that their process keeps."""
    succeeded(crossfade("train", wide, "--run-dir", "first", "--set", "train.max_steps=2", cwd=wide.parent))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_memory_in_process_equals_the_plan(tmp_path: Path, wide: Path, engine: str) -> None:
    if engine == "torch":
        pytest.importorskip("torch", reason=TORCH)
    setting = f"train.engine={engine}"
    parts = processes(wide, setting)["process"].parts
    held = sum(part.bytes for part in parts if part.phase in {"always", "steps"} and part.required)
    with started("train", wide, "--run-dir", "run", "--set", setting, cwd=tmp_path) as training:
        wait_for_steps(training, tmp_path / "run")
        assert psutil.Process(training.process.pid).memory_info().rss == pytest.approx(held, rel=0.15)


def memory_of(process: psutil.Process, name: str, file: str = "status") -> int:
    """Read a value of a file in ``/proc/PID`` in bytes, such as VmHWM (peak resident), RssAnon or RssFile."""
    for line in Path(f"/proc/{process.pid}/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name}")


def test_peak_counts_only_simultaneous_items() -> None:
    always, start, steps = MemoryItem("tables", 100), MemoryItem("a key", 50, "start"), MemoryItem("rows", 20, "steps")
    evaluation, writer = MemoryItem("rankings", 30, "evaluation"), MemoryItem("a writer", 15, "checkpoint")
    copied = MemoryItem("changed pages", 40, "checkpoint", required=False)
    assert ProcessPlan("server-0", (always, start, steps)).required_bytes == 150
    assert ProcessPlan("server-0", (always, start, steps, evaluation, writer)).required_bytes == 150
    process = ProcessPlan("server-0", (always, start, steps, evaluation, writer, copied))
    assert (process.required_bytes, process.peak_bytes) == (150, 100 + 30 + 15 + 40)


def test_only_the_first_worker_holds_a_spectral_start(wide: Path) -> None:
    planned = processes(wide, "model.initialization=spectral", "cluster.workers=2")
    held = {
        name: [part.bytes for part in plan.parts if part.what == "spectral start"] for name, plan in planned.items()
    }
    assert held == {"train": [], "worker-0": [24 * 100_000 + 16 * (64 + 16) * 20_000], "worker-1": []}


def test_each_worker_may_keep_all_interactions_of_a_small_dataset(wide: Path) -> None:
    planned = processes(wide, "cluster.workers=2")
    for worker in ("worker-0", "worker-1"):
        [kept] = [part.bytes for part in planned[worker].parts if part.what == "interactions kept for the next epochs"]
        assert kept == 100_000 * (8 + 8 + 4), "a row of each table, and a weight"
