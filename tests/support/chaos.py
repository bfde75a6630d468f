"""A training run that is killed, frozen and told to stop at random, and ends as if nothing had happened.

    python tests/support/chaos.py --seed 1 --faults 20

Two runs of one job on two servers and two workers: one undisturbed, and one in which faults strike its scheduler,
servers and workers: SIGKILL, SIGSTOP and SIGTERM, in the middle of steps, during a checkpoint and during start-up. In
the end the embeddings must be equal bit for bit, and the ledger, in which each worker notes every interaction that it
trains on, must show each exactly once an epoch. The seed decides which fault strikes whom, and when.
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
BATCH = 64
EPOCHS_A_FAULT = 16
"""So many, of 59 steps each, take about as long as it takes to write a checkpoint or two."""
STALL_SECONDS = 8
RUN_SECONDS = 3000.0
NOTICED_SECONDS = 60.0

LEDGER_VARIABLE = "CROSSFADE_TEST_LEDGER"
LEDGER_HOOK = """
import os

if os.environ.get("DMLC_ROLE") == "worker":
    import time
    from pathlib import Path

    import numpy as np

    from trainer.training.loop import TrainLoop

    file = (Path(os.environ["CROSSFADE_TEST_LEDGER"]) / f"{time.monotonic_ns()}-{os.getpid()}").open("ab", buffering=0)
    step = TrainLoop._step

    def step_and_note(self, batch, progress):
        query_B = batch.query.rows_A[batch.query.index_N]
        item_B = batch.item.rows_A[batch.item.index_N][: len(batch)]
        pairs_B = query_B * self.model.item.rows + item_B
        head = np.array([progress.step, progress.epoch, len(pairs_B)], dtype=np.int64)
        file.write(np.concatenate([head, pairs_B]).tobytes())
        step(self, batch, progress)

    TrainLoop._step = step_and_note
"""

Moment = Literal["steps", "checkpoint", "start-up"]


@dataclass(frozen=True)
class Fault:
    """What strikes whom, and when: once the run has come to ``step``, ``delay_seconds`` into the ``moment``."""

    number: signal.Signals
    role: str
    moment: Moment
    step: int
    delay_seconds: float


def plan_faults(seed: int, count: int, steps: int) -> list[Fault]:
    """``count`` faults spread over a run of ``steps`` steps, every kind of each of its traits among the first few."""
    choose = random.Random(seed)
    numbers = [signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM]
    moments: list[Moment] = ["steps", "checkpoint", "start-up"]

    def dealt(values: list[Any]) -> Iterator[Any]:
        while True:
            yield from choose.sample(values, len(values))

    roles, kinds, whens = dealt(list(ROLES)), dealt(numbers), dealt(moments)
    return [
        Fault(
            next(kinds),
            next(roles),
            next(whens),
            round((index + choose.random()) * steps / (count + 1)),
            choose.random(),
        )
        for index in range(count)
    ]


class Struck:
    """A run in which faults strike."""

    def __init__(self, command: RunningCommand, run_dir: Path, say: Callable[[str], None]) -> None:
        self._command = command
        self._run_dir = run_dir
        self._say = say
        self._begun = time.monotonic()

    def strike(self, fault: Fault) -> None:
        """Wait for the fault's moment, let it strike, and wait until the job runs again without the victim."""
        self._wait(lambda: self._step() >= fault.step, f"step {fault.step}")
        getattr(self, f"_await_{fault.moment.replace('-', '_')}")(fault)
        self._wait(lambda: self._victim(fault.role), fault.role)
        victim = self._victim(fault.role)
        assert victim is not None
        victim.send_signal(fault.number)
        since = time.monotonic() - self._begun
        self._say(f"{since:6.1f} s  step {self._step():>6}  {fault.number.name:<7}  {fault.role:<9}  in {fault.moment}")
        if fault.number == signal.SIGSTOP:
            self._thaw_if_nobody_minds(victim)
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
        """Have the job restarted by killing a worker, and strike while the next generation joins."""
        first = self._victim("worker-0")
        if first is not None:
            first.kill()
            self._wait(lambda: self._gone(first) and self._victim(fault.role), "a start")
        self._pause(3 * fault.delay_seconds)

    def _thaw_if_nobody_minds(self, victim: psutil.Process) -> None:
        """A frozen scheduler keeps nobody from stepping: then it thaws, and dies."""
        deadline = time.monotonic() + 3 * STALL_SECONDS
        while not self._gone(victim):
            self._alive()
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
        """The moment of a fault is a time: nothing can be waited for."""
        time.sleep(seconds)

    def _alive(self) -> None:
        assert self._command.process.poll() is None, self._command.finish()

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        def holds() -> object:
            self._alive()
            try:
                return condition()
            except psutil.NoSuchProcess:
                return False

        wait_until(holds, RUN_SECONDS if what.startswith("step") else NOTICED_SECONDS, what)


def ledger_of(folder: Path) -> list[dict[int, tuple[int, np.ndarray[Any, Any]]]]:
    """What each worker noted, in the order in which the workers began: by step, the epoch and the interactions."""
    noted = []
    for path in sorted(folder.iterdir(), key=lambda path: int(path.name.split("-")[0])):
        values = np.frombuffer(path.read_bytes()[: path.stat().st_size // 8 * 8], dtype=np.int64)
        entries, place = {}, 0
        while place + 3 <= len(values):
            step, epoch, count = values[place : place + 3]
            entries[int(step)] = (int(epoch), values[place + 3 : place + 3 + count])
            place += 3 + int(count)
        noted.append(entries)
    return noted


def check_ledger(folder: Path, epochs: int, steps: int) -> None:
    """Every interaction exactly once an epoch, of the steps that stayed.

    A step that was taken again, since the job went back to a checkpoint before it, stands as it was taken last; the two
    workers of a generation begin before those of the next.
    """
    noted = ledger_of(folder)
    pairs: dict[int, list[np.ndarray[Any, Any]]] = {epoch: [] for epoch in range(epochs)}
    for step in range(steps):
        last = [entries[step] for entries in noted if step in entries][-2:]
        assert len(last) == 2, f"step {step} was noted by {len(last)} workers"
        assert last[0][0] == last[1][0], f"step {step} was of epochs {last[0][0]} and {last[1][0]}"
        for epoch, interactions in last:
            pairs[epoch].append(interactions)
    query_N, item_N = (column[: train_rows()] for column in planted_splits()["train"])
    expected = np.sort(query_N * TRACKS + item_N)
    for epoch, parts in pairs.items():
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), expected, err_msg=f"epoch {epoch}")


def embeddings_of(run_dir: Path) -> dict[str, bytes]:
    """The embeddings' files, by name."""
    files = sorted((run_dir / "embeddings").rglob("*.parquet"))
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


def variables(folder: Path, run: str) -> dict[str, str]:
    """The environment of a run whose workers keep a ledger in ``RUN-ledger``."""
    (folder / "hook").mkdir(exist_ok=True)
    (folder / "hook" / "sitecustomize.py").write_text(LEDGER_HOOK)
    (folder / f"{run}-ledger").mkdir()
    path = os.pathsep.join(filter(None, [str(folder / "hook"), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, LEDGER_VARIABLE: str(folder / f"{run}-ledger")}


def run_chaos(folder: Path, seed: int, faults: int, epochs: int, say: Callable[[str], None] = print) -> str:
    """Both runs, in ``folder``, and the comparison; returns what can be said of them in a line."""
    steps = epochs * -(-train_rows() // BATCH)
    job = write_job(
        folder / "job.yaml",
        write_planted(folder / "data"),
        train={"batch_size": BATCH, "epochs": epochs, "eval_every_epochs": max(1, epochs // 4), "patience": None},
        checkpoint={"interval_seconds": 1.0, "keep_latest": 2},
        cluster={"stall_timeout_seconds": STALL_SECONDS, "max_restarts": 1000},
    )
    begun = time.monotonic()
    for run, planned in (("undisturbed", []), ("struck", plan_faults(seed, faults, steps))):
        arguments = ("train", job, "--run-dir", folder / run, *ON_SERVERS)
        with started(*arguments, cwd=folder, variables=variables(folder, run)) as command:
            struck = Struck(command, folder / run, say)
            for fault in planned:
                struck.strike(fault)
            result = command.finish(RUN_SECONDS)
            assert result.returncode == 0, result.stderr
            assert command.mark.processes() == [], "something of the run still runs"
        check_ledger(folder / f"{run}-ledger", epochs, steps)
    assert embeddings_of(folder / "struck") == embeddings_of(folder / "undisturbed") != {}, "embeddings differ"
    report = json.loads((folder / "struck" / "report.json").read_text())
    assert report["restarts"] >= faults
    return (
        f"chaos, seed {seed}: {faults} faults, {report['restarts']} restarts; embeddings equal bit for bit; each of "
        f"{train_rows():,} interactions exactly once in each of {epochs} epochs; {time.monotonic() - begun:.0f} s"
    )


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="which faults, and when (default 1)")
    parser.add_argument("--faults", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--epochs", type=int, help=f"length of the training (default {EPOCHS_A_FAULT} a fault)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR, and leave it for a look")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        say = lambda line: print(line, flush=True)  # noqa: E731
        epochs = arguments.epochs or EPOCHS_A_FAULT * arguments.faults
        say(run_chaos(folder, arguments.seed, arguments.faults, epochs, say))


if __name__ == "__main__":
    sys.exit(main())
