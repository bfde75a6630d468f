"""Jobs whose workers hold the tables: faults, checkpoints that move between stores, and several hosts."""

import re
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from fault_runs import JUMPING_CLOCK, assert_last_is_complete, assert_undisturbed, train, wait_for_saves
from paced_training import Training
from run_results import ENTITIES, checkpoint_arrays, report_of
from running_command import crossfade, messages, records, succeeded

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

DENSE = ("--set", "model.dense={item: [8]}")
TWO = ("--servers", 0, "--workers", 2, "--set", "cluster.store=sharded", *DENSE)
WORKERS = ["worker-0", "worker-1"]


@pytest.fixture(scope="module")
def undisturbed_pair(workspace: Path) -> Path:
    """Train on two workers that nothing disturbs."""
    result = succeeded(crossfade("train", "job.yaml", "--run-dir", "pair", *TWO, cwd=workspace))
    assert f"starting 2 workers, which hold the tables (logs: {Path('pair/logs')})" in result.stderr
    return workspace / "pair"


def wait_for_checkpoint_of(training: Training, generation: int) -> dict[str, psutil.Process]:
    """Return the roles once all of a generation run and it has written a checkpoint."""
    wait_for_saves(training, generation)
    roles = training.command.roles()
    assert sorted(roles) == WORKERS
    return roles


def assert_keeps_secrets(role: psutil.Process, rank: int) -> None:
    """Assert that a worker's environment has its rank, but not where the workers meet; and that MXNet is not loaded."""
    variables = role.environ()
    assert (variables["CROSSFADE_RANK"], variables["CROSSFADE_RANKS"]) == (str(rank), "2")
    assert not any(name.startswith(("DMLC_", "HOROVOD_")) for name in variables)
    assert not re.search(r"\d:\d+/[0-9a-f]{32}", " ".join([*role.cmdline(), *variables.values()]))
    loaded = {Path(area.path).name for area in role.memory_maps()}
    assert not any(name.startswith(("libmxnet", "libtorch")) for name in loaded)


def test_workers_that_are_killed_frozen_and_stopped_end_like_undisturbed_ones(
    workspace: Path, undisturbed_pair: Path
) -> None:
    run_dir, settings = workspace / "faults-of-ranks", ("--set", "cluster.stall_timeout_seconds=15")
    inherited = {"CROSSFADE_RANK": "7", "CROSSFADE_ADDRESS": "10.0.0.9", "DMLC_ROLE": "server"}
    with train(run_dir, *TWO, *settings, variables=inherited, hook=JUMPING_CLOCK) as training:
        roles = wait_for_checkpoint_of(training, 1)
        for rank, name in enumerate(WORKERS):
            assert_keeps_secrets(roles[name], rank)
        roles["worker-1"].kill()
        roles = wait_for_checkpoint_of(training, 2)
        roles["worker-0"].suspend()
        wait_for_checkpoint_of(training, 3)
        training.command.process.send_signal(signal.SIGTERM)
        stopped = training.command.finish()
        assert training.command.mark.processes() == []
    assert stopped.returncode == 143, stopped.stderr
    assert "resume with --resume" in messages(stopped.stderr)[-1]
    assert "report.json" not in {path.name for path in run_dir.iterdir()}
    succeeded(crossfade("train", "job.yaml", "--run-dir", run_dir, *TWO, "--resume", cwd=workspace))
    killed, *frozen = [restart["cause"] for restart in report_of(run_dir)["restart_causes"]]
    assert killed == "worker-1 was killed by SIGKILL"
    # On an overloaded machine, a start may take longer than that too.
    assert set(frozen) == {"no sign of progress for 15 s"}
    assert_undisturbed(run_dir, undisturbed_pair)
    times = [record["time"] for record in records(run_dir)]
    assert max(times) - min(times) > 80_000  # so the clocks have jumped
    assert_last_is_complete(run_dir / "checkpoints")


def test_run_that_moves_between_stores_and_numbers_of_workers_has_the_bits_of_one_process(tmp_path: Path) -> None:
    # As many partitions as row groups, so that each worker has a node of their tree.
    data, steps = write_planted(tmp_path / "data", train_files=[[900] * 4]), 20
    write_job(tmp_path / "job.yaml", data, optimizer={"kind": "adagrad"}, train={"epochs": 10, "patience": None})
    succeeded(
        crossfade_here("train", "job.yaml", "--run-dir", "one", "--set", f"train.max_steps={4 * steps}", cwd=tmp_path)
    )
    holders = [(0, 2, "ShardedStore"), (1, 1, "MXNetStore"), (0, 4, "ShardedStore")]
    for part, (servers, workers, store) in enumerate([*holders, (0, 1, "LocalStore")], 1):
        sizes = ("--servers", servers, "--workers", workers, "--set", f"train.max_steps={part * steps}")
        command = crossfade_here if store == "LocalStore" else crossfade
        succeeded(command("train", "job.yaml", "--run-dir", "moved", *sizes, "--resume", cwd=tmp_path))
        report = report_of(tmp_path / "moved")
        assert (report["steps"], report["store"]) == (part * steps, store)
        assert (report["servers"], report["workers"]) == (servers, workers)
    for entity in ENTITIES:
        moved, stayed = (checkpoint_arrays(tmp_path / name, entity) for name in ("moved", "one"))
        for name, values in stayed.items():
            np.testing.assert_array_equal(moved[name], values, err_msg=f"{entity} {name}")
