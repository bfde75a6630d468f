"""Commands that compete for a run: one that is frozen or resumed elsewhere neither commits nor starts anything."""

from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from command_here import crossfade_here
from fault_runs import ON_ONE_SERVER, STEPS, assert_last_is_complete, assert_undisturbed, checkpoint_option, train
from metric_groups import FIRST, PROCESS, ROWS, TRAINING
from paced_training import metrics_address
from run_results import report_of
from running_command import has_ended, succeeded
from scraping import families, scrape, targets
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TAKEN_OVER = "another command, with --resume or --standby, has taken the run over"
TIMEOUT = ("--set", "cluster.standby_timeout_seconds=3")


def test_frozen_coordinator_loses_its_run_to_one_of_two_standbys(workspace: Path, undisturbed: Path) -> None:
    run_dir = workspace / "frozen"
    with ExitStack() as stack:
        frozen = stack.enter_context(train(run_dir, *ON_ONE_SERVER, *TIMEOUT))
        frozen.wait_for("checkpoint_saved")
        standbys = [stack.enter_context(train(run_dir, *ON_ONE_SERVER, *TIMEOUT, "--standby")) for _ in range(2)]
        for standby in standbys:
            assert standby.command.process.stderr is not None
            assert "a run is in progress; standing by" in standby.command.process.stderr.readline()
        result = crossfade_here("train", "job.yaml", "--run-dir", "frozen", "--overwrite", cwd=workspace)
        assert (result.returncode, "frozen: a run is in progress; " in result.stderr) == (2, True)
        roles = frozen.command.roles()
        coordinator = psutil.Process(frozen.command.process.pid)
        coordinator.suspend()
        wait_until(lambda: any(standby.command.roles() for standby in standbys), "the roles of a standby")
        # The roles of the frozen coordinator, which still run, end without another checkpoint.
        wait_until(lambda: has_ended(roles["worker-0"]), "the end of the frozen coordinator's worker")
        assert "ERROR worker-0 generation=1" in (run_dir / "logs" / "worker-0.log").read_text()
        coordinator.resume()
        result = frozen.command.finish()
        assert (result.returncode, result.stderr.count(TAKEN_OVER)) == (2, 1)
        assert frozen.command.mark.processes() == []
        [winner] = [standby for standby in standbys if standby.command.roles()]
        [loser] = [standby for standby in standbys if standby is not winner]
        winner.wait_for("checkpoint_saved")
        assert loser.command.process.poll() is None
        stderr = succeeded(winner.finish()).stderr
        assert "resuming from" in stderr
        assert succeeded(loser.command.finish()).stderr.endswith("the run there is over (done): nothing to resume\n")
    assert_undisturbed(run_dir, undisturbed)
    assert_last_is_complete(run_dir / "checkpoints")


def test_run_resumed_elsewhere_ends_at_its_first_location(workspace: Path, undisturbed: Path, tmp_path: Path) -> None:
    shared = checkpoint_option(tmp_path / "shared")
    with train(workspace / "here", *shared) as here:
        address = metrics_address(here)
        here.wait_for("checkpoint_saved")
        assert families(scrape(address)) == PROCESS | TRAINING | FIRST | ROWS
        assert targets(address) == {"in-process": address}
        result = crossfade_here("train", "job.yaml", "--run-dir", "another", *shared, cwd=workspace)
        assert (result.returncode, "holds checkpoints of another run, of job 'planted'" in result.stderr) == (2, True)
        with train(workspace / "there", *shared, "--resume") as there:
            there.wait_for("checkpoint_saved")
            result = here.command.finish()
            succeeded(there.finish())
    assert result.returncode == 2
    assert f"{tmp_path / 'shared'}: another run, of job 'planted', was started in it with --resume" in result.stderr
    assert not (workspace / "here" / "report.json").exists()
    assert_undisturbed(workspace / "there", undisturbed)
    assert report_of(workspace / "there")["steps"] == STEPS
    assert_last_is_complete(tmp_path / "shared")
