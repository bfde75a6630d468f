"""Inject random faults into trainings, and check that they end like undisturbed ones.

    python tests/support/chaos.py --seed 1 --faults 20 --layouts host sharded

Each round trains a job, with features of tracks and checkpoints on a small disk, twice in one layout: on servers and
workers (host), or on workers that hold the tables (sharded). One run is undisturbed, and the other one has faults,
while the wall clocks of all its processes jump by a day. The embeddings must be equal bit for bit, the ledger must hold
each interaction exactly once per epoch, no process may be left, and each fault must be visible: a fault of a process as
a restart (a slow one need not), one of storage as a checkpoint that failed. The seed determines the faults.

    kill, terminate, freeze   a signal to a role, during steps, a checkpoint, or start-up
    slow                      a role is stopped and continued again and again, for seconds
    coordinator               SIGKILL to the command that started the roles; it is started again with --resume
    storage                   a full disk, until a checkpoint fails, or for seconds in start-up
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
from cluster_data import train_rows, write_job, write_planted
from fault_runs import DISK_BYTES, JUMPING_CLOCK
from ledger import FOLDER_VARIABLE, RECORD_STEPS, check_ledger
from paced_training import Training, paced
from running_command import has_ended, succeeded
from small_disk import fill, make_room, mounted_disk
from waiting import wait_until

BATCH = 256
WORKERS = 2
EPOCHS_PER_FAULT = 32
"""Epochs of 15 steps that take longer than a fault whose training goes on meanwhile."""
STEP_SECONDS = 0.03
"""Sleep in each step of the disturbed run."""
STALL_SECONDS = 8
RUN_SECONDS = 6000.0
RECOVERY_SECONDS = 240.0
PULSES, PULSE_SECONDS = 10, 0.2
OUTAGE_SECONDS = 5.0
FAULTS_PER_ROUND = 20

Kind = Literal["kill", "terminate", "freeze", "slow", "coordinator", "storage"]
Moment = Literal["steps", "checkpoint", "start-up"]
KINDS: list[Kind] = ["kill", "kill", "terminate", "freeze", "slow", "coordinator", "storage"]
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "freeze": signal.SIGSTOP}
RESTARTING = ("kill", "terminate", "freeze")


@dataclass(frozen=True)
class Layout:
    """Where the tables of a training are: on servers, or on its workers if it has no servers."""

    name: str
    servers: int

    def options(self) -> tuple[object, ...]:
        """Return the options of the command."""
        store = () if self.servers else ("--set", "cluster.store=sharded")
        return (*store, "--servers", self.servers, "--workers", WORKERS)

    def role_names(self) -> list[str]:
        """Return the names of all roles of a generation."""
        servers = ["scheduler", *(f"server-{number}" for number in range(self.servers))] if self.servers else []
        return [*servers, *(f"worker-{number}" for number in range(WORKERS))]


LAYOUTS = {"host": Layout("host", servers=2), "sharded": Layout("sharded", servers=0)}


@dataclass(frozen=True)
class Fault:
    """A fault of ``role`` once the run has saved ``step``, ``delay`` (from 0 to 1) into the ``moment``."""

    kind: Kind
    role: str
    moment: Moment
    step: int
    delay: float


def plan_faults(seed: int, count: int, steps: int, layout: Layout) -> list[Fault]:
    """Spread ``count`` faults over ``steps`` steps; the first few include every kind, role, and moment."""
    choose = random.Random(f"{layout.name} {seed}")
    moments: list[Moment] = ["steps", "checkpoint", "start-up"]

    def shuffled(values: list[Any]) -> Iterator[Any]:
        while True:
            yield from choose.sample(values, len(values))

    kinds, chosen_roles, chosen_moments = shuffled(KINDS), shuffled(layout.role_names()), shuffled(moments)
    return [
        Fault(
            next(kinds),
            next(chosen_roles),
            next(chosen_moments),
            round((index + choose.random()) * steps / (count + 1)),
            choose.random(),
        )
        for index in range(count)
    ]


@dataclass
class Injector:
    """Injects faults into a run, one after the other; ``trainings`` are its commands, of which the last one runs."""

    layout: Layout
    disk: Path
    trainings: list[Training]
    resume: Callable[[], Training]
    log: Callable[[str], None]
    started_at: float = field(default_factory=time.monotonic)

    @property
    def training(self) -> Training:
        """Return the running command."""
        return self.trainings[-1]

    @property
    def roles(self) -> dict[str, psutil.Process]:
        """Return the running roles by name."""
        return self.training.command.roles()

    def inject(self, fault: Fault) -> None:
        """Wait for the fault's moment, cause it, and wait until the training goes on."""
        self._wait(lambda: self._saved_step() >= fault.step, f"step {fault.step}")
        getattr(self, f"_await_{fault.moment.replace('-', '_')}")(fault)
        since, step = time.monotonic() - self.started_at, self._saved_step()
        target, name = "" if fault.kind == "storage" else fault.role, self.layout.name
        self.log(f"{since:6.1f} s  step {step:>6}  {name:<7}  {fault.kind:<11}  {target:<9}  in {fault.moment}")
        getattr(self, f"_{fault.kind}", self._signal)(fault)
        steps = len(self.training.events("step"))
        self._wait(lambda: len(self.training.events("step")) > steps, "a step after the fault")

    def _signal(self, fault: Fault) -> None:
        victim = self._victim(fault.role)
        victim.send_signal(SIGNALS[fault.kind])
        if fault.kind == "freeze":
            self._kill_if_undetected(victim)
        names = self.layout.role_names()
        self._wait(lambda: has_ended(victim) and sorted(self.roles) == names, "the next generation")

    def _slow(self, fault: Fault) -> None:
        victim = self._victim(fault.role)
        for _ in range(PULSES):
            victim.suspend()
            time.sleep(PULSE_SECONDS)  # that is the fault
            victim.resume()
            time.sleep(PULSE_SECONDS)

    def _coordinator(self, _: Fault) -> None:
        roles = list(self.roles.values())
        self.training.command.process.kill()
        wait_until(lambda: all(map(has_ended, roles)), "the end of the roles", seconds=RECOVERY_SECONDS)
        self.training.command.process.communicate(timeout=RECOVERY_SECONDS)
        self.trainings.append(self.resume())
        self._wait(lambda: sorted(self.roles) == self.layout.role_names(), "the resumed run")

    def _storage(self, fault: Fault) -> None:
        try:
            self._await_failed_checkpoint(fault)
        finally:
            make_room(self.disk)

    def _await_failed_checkpoint(self, fault: Fault) -> None:
        """Wait until a checkpoint has failed; during start-up, for a few seconds."""
        failed = len(self.training.events("checkpoint_failed"))

        def has_failed() -> bool:
            fill(self.disk)  # again and again, since deleted checkpoints make room
            return len(self.training.events("checkpoint_failed")) > failed

        if fault.moment == "start-up":
            time.sleep(OUTAGE_SECONDS)  # the generation waits for its checkpoint, or has begun
        else:
            self._wait(has_failed, "a checkpoint that fails")

    def _await_steps(self, fault: Fault) -> None:
        seen = len(self.training.events("step"))
        self._wait(lambda: len(self.training.events("step")) > seen, "a step")
        time.sleep(fault.delay)  # faults occur at a time, not on a condition

    def _await_checkpoint(self, fault: Fault) -> None:
        kinds = ("checkpoint_saved", "checkpoint_failed")
        before = sum(len(self.training.events(kind)) for kind in kinds)
        self._wait(lambda: sum(len(self.training.events(kind)) for kind in kinds) > before, "the end of a checkpoint")
        time.sleep(1 + fault.delay / 5)  # by then, the next one begins

    def _await_start_up(self, fault: Fault) -> None:
        """Kill a worker, so that the fault occurs while the next generation joins."""
        first = self._victim("worker-0")
        first.kill()
        self._wait(lambda: has_ended(first) and fault.role in self.roles, "a start")
        time.sleep(3 * fault.delay)

    def _kill_if_undetected(self, victim: psutil.Process) -> None:
        """Kill a frozen ``victim`` if the job continues without it, as it does without a scheduler."""
        deadline = time.monotonic() + 3 * STALL_SECONDS
        while not has_ended(victim):
            assert self.training.command.process.poll() is None, self.training.command.finish()
            if time.monotonic() > deadline:
                victim.kill()
                return
            time.sleep(0.05)

    def _victim(self, role: str) -> psutil.Process:
        self._wait(lambda: role in self.roles, role)
        return self.roles[role]

    def _saved_step(self) -> int:
        return max((record["step"] for record in self.training.events("checkpoint_saved")), default=0)

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        def holds() -> object:
            try:
                return condition()
            except psutil.NoSuchProcess:
                return False

        self.training.wait(holds, what, seconds=RUN_SECONDS if what.startswith("step") else RECOVERY_SECONDS)


def finish(trainings: list[Training]) -> None:
    """Let a run of these commands end, and assert that nothing of it is left."""
    succeeded(trainings[-1].finish(RUN_SECONDS))
    left = [process for training in trainings for process in training.command.mark.processes()]
    assert left == [], "processes of the run are left"


def write_chaos_job(folder: Path, epochs: int) -> Path:
    """Write a job whose items have features, and its dataset."""
    return write_job(
        folder / "job.yaml",
        write_planted(folder / "data", with_genres=True),
        model={"item_features": ["track", "genre"]},
        train={"batch_size": BATCH, "epochs": epochs, "eval_every_epochs": max(1, epochs // 4), "patience": None},
        checkpoint={"interval_seconds": 1.0, "keep_latest": 2},
        cluster={"stall_timeout_seconds": STALL_SECONDS, "max_restarts": 1000},
    )


def embeddings_of(run_dir: Path) -> dict[str, bytes]:
    """Return the files of the embeddings, by name."""
    files = sorted((run_dir / "embeddings").rglob("*.parquet"))
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


def run_chaos(
    folder: Path,
    layout: Layout,
    seed: int,
    faults: int,
    *,
    epochs: int | None = None,
    step_seconds: float = STEP_SECONDS,
    log: Callable[[str], None] = print,
) -> str:
    """Train both runs of ``layout`` in ``folder`` and compare them; return a summary in one line."""
    epochs = epochs or EPOCHS_PER_FAULT * faults
    steps, started_at = epochs * -(-train_rows() // BATCH), time.monotonic()
    job = write_chaos_job(folder, epochs)
    planned = plan_faults(seed, faults, steps, layout)
    with mounted_disk(folder / "disk", DISK_BYTES) as disk, ExitStack() as stack:

        def start(run: str, *options: object, hook: str = RECORD_STEPS, seconds: float = 0.0) -> Training:
            (ledger := folder / f"{run}-ledger").mkdir(exist_ok=True)
            variables, where = {FOLDER_VARIABLE: str(ledger)}, ("--set", f"checkpoint.path={disk / run}")
            arguments = ("train", job, *where, *layout.options(), *options)
            training = paced(*arguments, run_dir=folder / run, variables=variables, hook=hook, step_seconds=seconds)
            return stack.enter_context(training)

        disturbed = partial(start, "disturbed", hook=RECORD_STEPS + JUMPING_CLOCK, seconds=step_seconds)
        finish([start("undisturbed")])
        injector = Injector(layout, disk, [disturbed()], partial(disturbed, "--resume"), log)
        for fault in planned:
            injector.inject(fault)
        finish(injector.trainings)
    for run in ("undisturbed", "disturbed"):
        check_ledger(folder / f"{run}-ledger", epochs, steps, WORKERS)
    assert embeddings_of(folder / "disturbed") == embeddings_of(folder / "undisturbed") != {}, "embeddings differ"
    report = json.loads((folder / "disturbed" / "report.json").read_text())
    expected = sum(fault.kind in RESTARTING or fault.moment == "start-up" for fault in planned)
    assert report["restarts"] >= expected, f"{report['restarts']} restarts after {expected} faults of roles"
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(Counter(f.kind for f in planned).items()))
    return (
        f"chaos, {layout.name}, seed {seed}: {faults} faults ({counts}), {report['restarts']} restarts; embeddings "
        f"equal bit for bit; each of {train_rows():,} interactions exactly once in each of {epochs} epochs; "
        f"{time.monotonic() - started_at:.0f} s"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="seed of the first round's faults (default: 1)")
    parser.add_argument("--faults", type=int, default=20, help="number of faults, in rounds of 20 (default: 20)")
    parser.add_argument(
        "--layouts", nargs="+", choices=LAYOUTS, default=["host"], help="layouts, used in turn (default: host)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR, and keep it")
    arguments = parser.parse_args()
    log = partial(print, flush=True)
    rounds = -(-arguments.faults // FAULTS_PER_ROUND)
    for number in range(rounds):
        name = arguments.layouts[number % len(arguments.layouts)]
        faults = min(FAULTS_PER_ROUND, arguments.faults - number * FAULTS_PER_ROUND)
        with tempfile.TemporaryDirectory() as temporary:
            folder = (arguments.keep or Path(temporary)) / f"{number}-{name}"
            folder.mkdir(parents=True)
            layout, seed = LAYOUTS[name], arguments.seed + number // len(arguments.layouts)
            log(run_chaos(folder, layout, seed, faults, log=log))


if __name__ == "__main__":
    main()
