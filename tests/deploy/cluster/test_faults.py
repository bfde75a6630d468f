"""Faults of what a run stands on: its disk, its S3, its network, other runs. Training itself is left as it would be."""

import errno
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from net_hosts import network, unavailable
from object_store import ObjectStore, running_object_store
from paced_training import Training, pace, paced
from run_results import assert_same_bits, report_of
from running_command import crossfade, records, started, succeeded
from waiting import wait_until

from kvstore.checkpoint.lifecycle import latest_checkpoint
from kvstore.io.folder import Folder
from trainer.runs.event_log import EventLog
from trainer.runs.events import EpochEvent

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ON_SERVERS = ("--servers", 2, "--workers", 2)
STEPS = 900
TRAIN = {"epochs": STEPS // 15, "evaluate_every": 20, "patience": None}
CHECKPOINT = {"every_seconds": 0.5, "keep": 2}
DISK_BYTES = 1 << 20
TOKEN = "the-token-of-these-tests"
IMPATIENT = {"CROSSFADE_S3_ATTEMPTS": "3", "CROSSFADE_S3_TIMEOUT_SECONDS": "1"}
"""Has an S3 that does not answer given up within seconds, where it is a minute or more otherwise."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a job."""
    folder = tmp_path_factory.mktemp("faults")
    data = write_planted(folder / "data")
    write_job(folder / "job.yaml", data, optimizer={"kind": "adagrad"}, train=TRAIN, checkpoint=CHECKPOINT)
    return folder


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> dict[int, Path]:
    """Runs that nothing disturbs, by their number of workers."""
    succeeded(crossfade("train", "job.yaml", "--run-dir", "undisturbed-1", cwd=place))
    succeeded(crossfade("train", "job.yaml", "--run-dir", "undisturbed-2", *ON_SERVERS, cwd=place))
    return {workers: place / f"undisturbed-{workers}" for workers in (1, 2)}


def train(
    run_dir: Path, *options: object, variables: Mapping[str, str] | None = None, within: Sequence[str] = ()
) -> AbstractContextManager[Training]:
    """Begin a training that takes its time."""
    job = run_dir.parent / "job.yaml"
    return paced("train", job, *options, run_dir=run_dir, variables=variables, within=within)


def to(checkpoints: object) -> tuple[str, str]:
    """The option that has checkpoints written there."""
    return "--set", f"checkpoint.path={checkpoints}"


def assert_undisturbed(run_dir: Path, undisturbed: dict[int, Path]) -> None:
    """The run has taken each step, and has the embeddings of one that nothing disturbed."""
    report = report_of(run_dir)
    assert report["steps"] == STEPS
    assert_same_bits(run_dir, undisturbed[report["workers"]])


def assert_counted(training: Training) -> None:
    """The report counts the checkpoints that the run has recorded."""
    counted = report_of(training.run_dir)["checkpoints"]
    assert counted["written"] == len(training.events("checkpoint_saved"))
    assert counted["failed"] == len(training.events("checkpoint_failed"))


def assert_last_is_whole(checkpoints: object, keep: int = 2) -> None:
    """The newest checkpoint is that of the last step; the ones before it are whole, and no more than are kept."""
    checkpoint, skipped = latest_checkpoint(str(checkpoints))
    assert checkpoint is not None
    assert (checkpoint.manifest.step, skipped) == (STEPS, [])
    # Files, since S3 here lists an emptied folder for a while longer.
    folders = {path.partition("/")[0] for path in Folder(str(checkpoints)).sizes() if "/" in path}
    assert len(folders) <= keep, folders


def assert_trains_on(training: Training) -> None:
    """Further steps are taken."""
    training.wait_for("step")


# ---- disks


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A disk of ``DISK_BYTES`` at ``folder``."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk is for root")
    folder.mkdir()
    made = mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder)
    if made.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {made.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def mount(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    with mounted(tmp_path / "disk") as disk:
        yield disk


def fill(disk: Path, leave: int = 16384) -> None:
    """Take what room there is on it, but for a little: less than a checkpoint needs."""
    left = os.statvfs(disk)
    room = left.f_bavail * left.f_frsize - leave
    if room > 0:
        with (disk / "filler").open("ab") as file:
            file.write(bytes(room))


def test_full_disk_costs_only_checkpoints(place: Path, undisturbed: dict[int, Path], disk: Path) -> None:
    with train(place / "full", *ON_SERVERS, *to(disk / "checkpoints")) as training:
        training.wait_for("checkpoint_saved")
        # Whenever an old checkpoint is deleted, there is room again.
        training.wait_for("checkpoint_failed", meanwhile=lambda: fill(disk))
        assert_trains_on(training)
        (disk / "filler").unlink()
        training.wait_for("checkpoint_saved")
        result = succeeded(training.finish())
    assert "was not written: " in result.stderr
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
    assert_undisturbed(training.run_dir, undisturbed)
    assert_counted(training)
    assert report_of(training.run_dir)["restarts"] == 0
    assert_last_is_whole(disk / "checkpoints")


def test_read_only_folder_costs_only_checkpoints(place: Path, undisturbed: dict[int, Path], disk: Path) -> None:
    with train(place / "read-only", *to(disk / "checkpoints")) as training:
        training.wait_for("checkpoint_saved")
        # Not while a file on it is being written.
        training.wait(lambda: mount("-o", "remount,ro", disk).returncode == 0, "a moment to make it read-only")
        training.wait_for("checkpoint_failed")
        assert_trains_on(training)
        assert mount("-o", "remount,rw", disk).returncode == 0
        training.wait_for("checkpoint_saved")
        result = succeeded(training.finish())
    assert "Read-only file system" in result.stderr
    assert_undisturbed(training.run_dir, undisturbed)
    assert_counted(training)
    assert_last_is_whole(disk / "checkpoints")


def test_run_without_embeddings_fails_if_its_last_checkpoint_does(place: Path, disk: Path) -> None:
    options = (*to(disk / "checkpoints"), "--set", "train.save_embeddings=none")
    with train(place / "no-embeddings", *options) as training:
        training.wait_for("checkpoint_saved")
        training.wait(lambda: mount("-o", "remount,ro", disk).returncode == 0, "a moment to make it read-only")
        training.wait_for("checkpoint_failed")
        result = training.finish()
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        f"crossfade: error: {disk}/checkpoints: training is done, but its last checkpoint was not written"
    )
    assert not (training.run_dir / "report.json").exists()
    assert mount("-o", "remount,rw", disk).returncode == 0
    succeeded(crossfade("train", "job.yaml", "--run-dir", "no-embeddings", *options, "--resume", cwd=place))
    assert_last_is_whole(disk / "checkpoints")


def test_records_on_a_full_disk_are_omitted_completely(disk: Path) -> None:
    lost: list[OSError] = []
    path = disk / "events.jsonl"
    path.write_text('{"step": -1}\n{"step": -')  # of a writer that was killed
    log = EventLog(path, lost.append)
    fill(disk, leave=0)
    for number in range(200):
        log.write(EpochEvent(epoch=1, step=number, loss=0.5))
    assert [error.errno for error in lost] == [errno.ENOSPC]
    (disk / "filler").unlink()
    log.write(EpochEvent(epoch=1, step=200, loss=0.5))
    log.write(EpochEvent(epoch=1, step=201, loss=0.5))
    log.close()
    numbers = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    begun = numbers.index(200)
    assert numbers == [*range(-1, begun - 1), 200, 201]
    assert 1 < begun < 150


def test_read_only_checkpoint_folder_is_rejected_before_an_earlier_run_is_touched(place: Path, disk: Path) -> None:
    run = ("train", "job.yaml", "--run-dir", "refused", *to(disk / "checkpoints"), "--set", "train.max_steps=20")
    succeeded(crossfade(*run, cwd=place))
    before = (place / "refused" / "report.json").read_bytes()
    assert mount("-o", "remount,ro", disk).returncode == 0
    for how in ("--resume", "--overwrite"):
        elsewhere = to(disk / "others") if how == "--overwrite" else ()
        result = crossfade(*run, *elsewhere, how, cwd=place)
        assert result.returncode == 2
        [line] = result.stderr.splitlines()
        assert line.startswith(f"crossfade: error: checkpoint.path: {disk}/")
        assert "Read-only file system" in line
        assert (place / "refused" / "report.json").read_bytes() == before


# ---- S3


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with running_object_store(tmp_path_factory.mktemp("object-store")) as server:
        yield server


@pytest.fixture
def checkpoints(s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder on S3, which this process reaches too."""
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    return s3.uri(tmp_path.name)


def test_killed_server_restarts_from_s3_after_an_outage(
    place: Path, undisturbed: dict[int, Path], s3: ObjectStore, checkpoints: str
) -> None:
    with train(place / "s3-killed-server", *ON_SERVERS, *to(checkpoints)) as training:
        training.wait_for("checkpoint_saved")
        s3.stop()
        roles = training.command.roles()
        roles["server-1"].kill()
        training.wait(lambda: not any(role.is_running() for role in roles.values()), "the end of all roles")
        s3.start()
        training.wait(training.command.roles, "the next generation")
        result = succeeded(training.finish())
    [restart] = report_of(training.run_dir)["restart_causes"]
    assert restart["cause"] == "server-1 was killed by SIGKILL"
    assert "restarting (generation 2) from step " in result.stderr
    assert_undisturbed(training.run_dir, undisturbed)
    assert_last_is_whole(checkpoints)


def test_killed_run_resumes_from_s3_after_an_outage(
    place: Path, undisturbed: dict[int, Path], s3: ObjectStore, checkpoints: str
) -> None:
    run_dir = place / "s3-killed"
    with train(run_dir, *to(checkpoints)) as training:
        training.wait_for("checkpoint_saved")
        training.wait_for("checkpoint_saved")
        training.command.process.kill()
    saved = training.events("checkpoint_saved")[-1]["step"]
    resume = ("train", "job.yaml", "--run-dir", run_dir, *to(checkpoints), "--resume")
    s3.stop()
    try:
        before = {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
        result = crossfade(*resume, cwd=place, variables=IMPATIENT)
        assert result.returncode == 2
        [line] = result.stderr.splitlines()
        assert line.startswith(f"crossfade: error: checkpoint.path: {checkpoints} ")
        assert "NETWORK_CONNECTION" in line
        assert {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()} == before
    finally:
        s3.start()
    told = len(records(run_dir))
    succeeded(crossfade(*resume, cwd=place))
    [begun] = [record for record in records(run_dir)[told:] if record.get("name") == "training"]
    assert begun["step"] >= saved
    assert_undisturbed(run_dir, undisturbed)
    assert_last_is_whole(checkpoints)


def test_checkpoint_waits_for_unresponsive_s3(
    place: Path, undisturbed: dict[int, Path], s3: ObjectStore, checkpoints: str
) -> None:
    variables = {"CROSSFADE_S3_TIMEOUT_SECONDS": "1"}
    with train(place / "s3-paused", *to(checkpoints), variables=variables) as training:
        training.wait_for("checkpoint_saved")
        training.wait_for_checkpoint_start()
        with s3.paused():
            saved = len(training.events("checkpoint_saved"))
            for _ in range(3):
                assert_trains_on(training)
            assert len(training.events("checkpoint_saved")) <= saved + 1
        training.wait_for("checkpoint_saved")
        succeeded(training.finish())
    assert training.events("checkpoint_failed") == []
    assert_undisturbed(training.run_dir, undisturbed)
    assert_last_is_whole(checkpoints)


def test_temporary_s3_outage_costs_only_checkpoints(
    place: Path, undisturbed: dict[int, Path], s3: ObjectStore, checkpoints: str
) -> None:
    with train(place / "s3-gone", *ON_SERVERS, *to(checkpoints), variables=IMPATIENT) as training:
        training.wait_for("checkpoint_saved")
        training.wait_for_checkpoint_start()
        s3.stop()
        try:
            training.wait_for("checkpoint_failed")
            assert_trains_on(training)
        finally:
            s3.start()
        training.wait_for("checkpoint_saved")
        result = succeeded(training.finish())
    assert "NETWORK_CONNECTION" in result.stderr
    assert_undisturbed(training.run_dir, undisturbed)
    assert_counted(training)
    assert report_of(training.run_dir)["restarts"] == 0
    assert_last_is_whole(checkpoints)


def test_permanent_s3_outage_leaves_a_finished_run_with_embeddings(
    place: Path, undisturbed: dict[int, Path], s3: ObjectStore, checkpoints: str
) -> None:
    with train(place / "s3-stays-away", *to(checkpoints), variables=IMPATIENT) as training:
        training.wait_for("checkpoint_saved")
        s3.stop()
        try:
            training.wait_for("checkpoint_failed")
            result = succeeded(training.finish())
        finally:
            s3.start()
    assert f"crossfade: the checkpoint of step {STEPS} was not written: {checkpoints}/step-" in result.stderr
    assert_undisturbed(training.run_dir, undisturbed)
    assert_counted(training)
    # What was saved before is there, and the run can be taken up from it.
    succeeded(crossfade("train", "job.yaml", "--run-dir", training.run_dir, *to(checkpoints), "--resume", cwd=place))
    assert_undisturbed(training.run_dir, undisturbed)
    assert_last_is_whole(checkpoints)


def test_wrong_s3_secret_is_rejected_before_an_earlier_run_is_touched(place: Path, checkpoints: str) -> None:
    run = ("train", "job.yaml", "--run-dir", "secret", "--set", "train.max_steps=20")
    succeeded(crossfade(*run, cwd=place))
    for how in ("--overwrite", "--resume"):
        begun = time.monotonic()
        result = crossfade(
            *run, *to(checkpoints), how, cwd=place, variables={"AWS_SECRET_ACCESS_KEY": "not the secret"}
        )
        assert time.monotonic() - begun < 30
        assert result.returncode == 2
        [line] = result.stderr.splitlines()
        assert line.startswith(f"crossfade: error: checkpoint.path: {checkpoints} ")
        assert "access denied (403 SignatureDoesNotMatch)" in line
        assert "not the secret" not in line
        assert (place / "secret" / "report.json").exists()


# ---- other runs


def test_locked_run_folder_is_rejected_with_every_option(place: Path) -> None:
    with train(place / "busy") as training:
        training.wait_for("checkpoint_saved")
        for how in ((), ("--resume",), ("--overwrite",)):
            result = crossfade("train", "job.yaml", "--run-dir", "busy", *how, cwd=place)
            assert result.returncode == 2
            assert result.stderr.startswith("crossfade: error: busy: a run is in progress; ")
        training.wait_for("checkpoint_saved")
        succeeded(training.finish())


def test_checkpoint_folder_of_a_running_run_is_rejected(
    place: Path, undisturbed: dict[int, Path], tmp_path: Path
) -> None:
    shared = to(tmp_path / "shared")
    succeeded(crossfade("train", "job.yaml", "--run-dir", "other", "--set", "train.max_steps=20", cwd=place))
    with train(place / "first", *shared) as training:
        training.wait_for("checkpoint_saved")
        for how in ((), ("--overwrite",)):
            result = crossfade("train", "job.yaml", "--run-dir", "other", *shared, *how, cwd=place)
            assert result.returncode == 2
            assert f"{tmp_path / 'shared'}: holds checkpoints of another run, of job 'planted'" in result.stderr
            assert (place / "other" / "report.json").exists(), "the earlier run was touched"
        training.wait_for("checkpoint_saved")
        succeeded(training.finish())
    assert_undisturbed(training.run_dir, undisturbed)
    assert_last_is_whole(tmp_path / "shared")


def test_run_resumed_elsewhere_ends_in_its_first_place(
    place: Path, undisturbed: dict[int, Path], tmp_path: Path
) -> None:
    shared = to(tmp_path / "shared")
    with train(place / "here", *shared) as here:
        here.wait_for("checkpoint_saved")
        with train(place / "there", *shared, "--resume") as there:
            there.wait_for("checkpoint_saved")
            result = here.command.finish()
            succeeded(there.finish())
    assert result.returncode == 2
    assert f"{tmp_path / 'shared'}: another run, of job 'planted', was started in it with --resume" in result.stderr
    assert not (place / "here" / "report.json").exists()
    assert_undisturbed(place / "there", undisturbed)
    assert_last_is_whole(tmp_path / "shared")


# ---- hosts


def test_host_with_cut_link_leaves_and_rejoins(place: Path, undisturbed: dict[int, Path]) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    run_dir = place / "hosts"
    variables = pace(place, place / "hosts.release", {"CROSSFADE_TOKEN": TOKEN})
    with network(3) as (first, second, third):
        listen = f"{first.address}:7070"
        across = (f"cluster.host={first.address}", f"cluster.coordinator_address={listen}", "cluster.hosts=3")
        options = [part for setting in across for part in ("--set", setting)]
        agent = {"cwd": place, "variables": variables}
        join = ("agent", "--join", listen, "--run-dir", run_dir)
        with (
            train(run_dir, "--servers", 3, "--workers", 2, *options, variables=variables, within=first.within) as job,
            started(*join, within=second.within, **agent) as steady,
            started(*join, within=third.within, **agent) as lost,
        ):
            job.wait_for("checkpoint_saved")
            assert sorted(job.command.roles()) == ["scheduler", "server-0", "worker-0"]
            assert sorted([*steady.roles(), *lost.roles()]) == ["server-1", "server-2", "worker-1"]
            # A cut that is shorter than the leases costs no restart.
            third.cut()
            time.sleep(3)  # that is the fault
            third.mend()
            assert_trains_on(job)
            third.cut()
            wait_until(lambda: lost.roles() == {}, 20, "the end of the roles that are cut off")
            assert job.command.roles(), "the others went on before the roles that are cut off had ended"
            job.wait(lambda: job.command.roles() == {} == steady.roles(), "the job waiting")
            assert lost.process.poll() is None
            third.mend()
            job.wait(lost.roles, "the next generation")
            result = succeeded(job.finish())
            for other in (steady, lost):
                assert "the job is done" in succeeded(other.finish()).stderr
    [restart] = report_of(run_dir)["restart_causes"]
    assert f"({third.address}) was not heard of for 15 s" in restart["cause"]
    assert "waiting for 1 more host(s) to join" in result.stderr
    assert_undisturbed(run_dir, undisturbed)
    assert_last_is_whole(run_dir / "checkpoints")
