"""Inject random faults into a training run, and check that it ends like an undisturbed one.

    python tests/support/chaos.py --seed 1 --faults 20

Trains a job twice on two servers and two workers: once undisturbed, and once with faults in the scheduler,
servers and workers: SIGKILL, SIGSTOP and SIGTERM, during steps, a checkpoint or start-up. The embeddings must be equal
bit for bit, and the ledger, in which each worker records every interaction that it trains on, must hold each exactly
once per epoch. The seed determines the faults.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from cluster_data import TRACKS, planted_splits, train_rows, write_job, write_planted
from running_command import RunningCommand, records, started
from waiting import wait_until

ON_SERVERS = ("--servers", 2, "--workers", 2)
ROLES = ("scheduler", "server-0", "server-1", "worker-0", "worker-1")
BATCH = 256
EPOCHS_PER_FAULT = 16
"""Epochs of 15 steps that take about as long as writing one or two checkpoints."""
STEP_SECONDS = 0.03
"""Sleep in each step: a run must last long, but its steps need not take the processors."""
STALL_SECONDS = 8
RUN_SECONDS = 3000.0
RECOVERY_SECONDS = 60.0

LEDGER_VARIABLE = "CROSSFADE_TEST_LEDGER"
LEDGER_HOOK = f"""
import os

if os.environ.get("DMLC_ROLE") == "worker":
    import time
    from pathlib import Path

    import numpy as np

    from crossfade.trainer.training.loop import TrainLoop

    ledger = Path(os.environ["{LEDGER_VARIABLE}"]) / f"{{time.monotonic_ns()}}-{{os.getpid()}}"
    file = ledger.open("ab", buffering=0)
    step = TrainLoop._step

    def step_and_record(self, batch, progress):
        query_B = batch.query.rows_A[batch.query.index_N]
        item_B = batch.item.rows_A[batch.item.index_N][: len(batch)]
        pairs_B = query_B * self.model.item.rows + item_B
        head = np.array([progress.step, progress.epoch, len(pairs_B)], dtype=np.int64)
        file.write(np.concatenate([head, pairs_B]).tobytes())
        time.sleep({STEP_SECONDS})
        step(self, batch, progress)

    TrainLoop._step = step_and_record
"""

Moment = Literal["steps", "checkpoint", "start-up"]


@dataclass(frozen=True)
class Fault:
    """A signal sent to ``role`` once the run has reached ``step``, ``delay_seconds`` into the ``moment``."""

    number: signal.Signals
    role: str
    moment: Moment
    step: int
    delay_seconds: float


def plan_faults(seed: int, count: int, steps: int) -> list[Fault]:
    """Spread ``count`` faults over ``steps`` steps; the first few include every signal, role and moment."""
    choose = random.Random(seed)
    numbers = [signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM]
    moments: list[Moment] = ["steps", "checkpoint", "start-up"]

    def shuffled(values: list[Any]) -> Iterator[Any]:
        while True:
            yield from choose.sample(values, len(values))

    roles, signals, chosen_moments = shuffled(list(ROLES)), shuffled(numbers), shuffled(moments)
    return [
        Fault(
            next(signals),
            next(roles),
            next(chosen_moments),
            round((index + choose.random()) * steps / (count + 1)),
            choose.random(),
        )
        for index in range(count)
    ]


class DisturbedRun:
    """A run into which faults are injected."""

    def __init__(self, command: RunningCommand, run_dir: Path, log: Callable[[str], None]) -> None:
        self._command = command
        self._run_dir = run_dir
        self._log = log
        self._started_at = time.monotonic()

    def inject(self, fault: Fault) -> None:
        """Wait for the fault's moment, send the signal, and wait until the job runs again without the victim."""
        self._wait(lambda: self._step() >= fault.step, f"step {fault.step}")
        getattr(self, f"_await_{fault.moment.replace('-', '_')}")(fault)
        self._wait(lambda: self._victim(fault.role), fault.role)
        victim = self._victim(fault.role)
        assert victim is not None
        victim.send_signal(fault.number)
        since = time.monotonic() - self._started_at
        self._log(f"{since:6.1f} s  step {self._step():>6}  {fault.number.name:<7}  {fault.role:<9}  in {fault.moment}")
        if fault.number == signal.SIGSTOP:
            self._kill_if_undetected(victim)
        self._wait(lambda: self._gone(victim) and len(self._command.roles()) == len(ROLES), "the next generation")

    def _await_steps(self, fault: Fault) -> None:
        seen = len(records(self._run_dir))
        self._wait(lambda: any(r["event"] == "step" for r in records(self._run_dir)[seen:]), "a step")
        self._pause(fault.delay_seconds)

    def _await_checkpoint(self, fault: Fault) -> None:
        folder = self._run_dir / "checkpoints"
        before = set(folder.glob("step-*"))
        self._wait(lambda: set(folder.glob("step-*")) - before, "a checkpoint that begins")
        self._pause(fault.delay_seconds / 5)

    def _await_start_up(self, fault: Fault) -> None:
        """Kill a worker, and inject the fault while the next generation joins."""
        first = self._victim("worker-0")
        if first is not None:
            first.kill()
            self._wait(lambda: self._gone(first) and self._victim(fault.role), "a start")
        self._pause(3 * fault.delay_seconds)

    def _kill_if_undetected(self, victim: psutil.Process) -> None:
        """Kill a frozen ``victim`` if the job continues without it, as it does without a scheduler."""
        deadline = time.monotonic() + 3 * STALL_SECONDS
        while not self._gone(victim):
            self._assert_running()
            if time.monotonic() > deadline:
                victim.kill()
                return
            time.sleep(0.05)

    def _victim(self, role: str) -> psutil.Process | None:
        return self._command.roles().get(role)

    @staticmethod
    def _gone(process: psutil.Process) -> bool:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    def _step(self) -> int:
        return max(
            (record["step"] for record in records(self._run_dir) if record["event"] == "checkpoint_saved"), default=0
        )

    def _pause(self, seconds: float) -> None:
        """Sleep, since faults occur at a time, not on a condition."""
        time.sleep(seconds)

    def _assert_running(self) -> None:
        assert self._command.process.poll() is None, self._command.finish()

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        def holds() -> object:
            self._assert_running()
            try:
                return condition()
            except psutil.NoSuchProcess:
                return False

        wait_until(holds, RUN_SECONDS if what.startswith("step") else RECOVERY_SECONDS, what)


def ledger_of(folder: Path) -> list[dict[int, tuple[int, np.ndarray[Any, Any]]]]:
    """Read each worker's ledger, in the order in which they started: by step, the epoch and the interactions."""
    ledgers = []
    for path in sorted(folder.iterdir(), key=lambda path: int(path.name.split("-")[0])):
        values = np.frombuffer(path.read_bytes()[: path.stat().st_size // 8 * 8], dtype=np.int64)
        entries, position = {}, 0
        while position + 3 <= len(values):
            step, epoch, count = values[position : position + 3]
            entries[int(step)] = (int(epoch), values[position + 3 : position + 3 + count])
            position += 3 + int(count)
        ledgers.append(entries)
    return ledgers


def check_ledger(folder: Path, epochs: int, steps: int) -> None:
    """Assert that every interaction was trained on exactly once per epoch.

    A step that was repeated after a restart counts as it was taken last. The two workers of a generation start before
    those of the next.
    """
    ledgers = ledger_of(folder)
    pairs: dict[int, list[np.ndarray[Any, Any]]] = {epoch: [] for epoch in range(epochs)}
    for step in range(steps):
        last = [entries[step] for entries in ledgers if step in entries][-2:]
        assert len(last) == 2, f"step {step} was recorded by {len(last)} workers"
        assert last[0][0] == last[1][0], f"step {step} was of epochs {last[0][0]} and {last[1][0]}"
        for epoch, interactions in last:
            pairs[epoch].append(interactions)
    query_N, item_N = (column[: train_rows()] for column in planted_splits()["train"])
    expected = np.sort(query_N * TRACKS + item_N)
    for epoch, parts in pairs.items():
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), expected, err_msg=f"epoch {epoch}")


def embeddings_of(run_dir: Path) -> dict[str, bytes]:
    """Return the files of the embeddings, by name."""
    files = sorted((run_dir / "embeddings").rglob("*.parquet"))
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


def variables(folder: Path, run: str) -> dict[str, str]:
    """Return the environment of a run whose workers write a ledger in ``RUN-ledger``."""
    (folder / "hook").mkdir(exist_ok=True)
    (folder / "hook" / "sitecustomize.py").write_text(LEDGER_HOOK)
    (folder / f"{run}-ledger").mkdir()
    path = os.pathsep.join(filter(None, [str(folder / "hook"), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, LEDGER_VARIABLE: str(folder / f"{run}-ledger")}


def run_chaos(folder: Path, seed: int, faults: int, epochs: int, log: Callable[[str], None] = print) -> str:
    """Train both runs in ``folder`` and compare them; return a summary in one line."""
    steps = epochs * -(-train_rows() // BATCH)
    job = write_job(
        folder / "job.yaml",
        write_planted(folder / "data"),
        train={"batch_size": BATCH, "epochs": epochs, "eval_every_epochs": max(1, epochs // 4), "patience": None},
        checkpoint={"interval_seconds": 1.0, "keep_latest": 2},
        cluster={"stall_timeout_seconds": STALL_SECONDS, "max_restarts": 1000},
    )
    started_at = time.monotonic()
    for run, planned in (("undisturbed", []), ("disturbed", plan_faults(seed, faults, steps))):
        arguments = ("train", job, "--run-dir", folder / run, *ON_SERVERS)
        with started(*arguments, cwd=folder, variables=variables(folder, run)) as command:
            disturbed = DisturbedRun(command, folder / run, log)
            for fault in planned:
                disturbed.inject(fault)
            result = command.finish(RUN_SECONDS)
            assert result.returncode == 0, result.stderr
            assert command.mark.processes() == [], "processes of the run are left"
        check_ledger(folder / f"{run}-ledger", epochs, steps)
    assert embeddings_of(folder / "disturbed") == embeddings_of(folder / "undisturbed") != {}, "embeddings differ"
    report = json.loads((folder / "disturbed" / "report.json").read_text())
    assert report["restarts"] >= faults
    return (
        f"chaos, seed {seed}: {faults} faults, {report['restarts']} restarts; embeddings equal bit for bit; each of "
        f"{train_rows():,} interactions exactly once in each of {epochs} epochs; {time.monotonic() - started_at:.0f} s"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="seed of the faults (default: 1)")
    parser.add_argument("--faults", type=int, default=20, help="number of faults (default: 20)")
    parser.add_argument("--epochs", type=int, help=f"epochs to train (default: {EPOCHS_PER_FAULT} per fault)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR, and keep it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        log = lambda line: print(line, flush=True)  # noqa: E731
        epochs = arguments.epochs or EPOCHS_PER_FAULT * arguments.faults
        log(run_chaos(folder, arguments.seed, arguments.faults, epochs, log))


if __name__ == "__main__":
    sys.exit(main())
