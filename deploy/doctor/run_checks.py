"""Check a job on this host: its run folder, its dataset, whether memory, disks, and ports suffice, and what is left.

Left by processes that died are unfinished files, folders, and uploads, and locks; nothing is deleted. A staged output
and a lock count once the process that holds the lock has ended, other files and folders after a day.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path

from crossfade.base.errors import CrossfadeError, MissingExtraError, as_typed, command
from crossfade.base.formatting import size
from crossfade.base.io.file_lock import folder_lock
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import read_regular
from crossfade.base.io.writer_lock import LOCK_NAME, ended_owner
from crossfade.base.machine import this_machine
from crossfade.base.text import counted
from crossfade.deploy.capacity.plan import CapacityPlan, check_fit, format_gib, plan_local_host
from crossfade.deploy.capacity.plan_inputs import PlanInputs, read_inputs
from crossfade.deploy.checkpoint_cleaning import find_uploads
from crossfade.deploy.cluster.supervision import check_hosts
from crossfade.deploy.doctor.findings import Finding, State
from crossfade.deploy.topology import Address, check_free_port, roles
from crossfade.kvstore.checkpoint.lifecycle import find_leftovers, list_checkpoints
from crossfade.kvstore.torch.device import require_torch
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.vocabulary import check_vocabularies
from crossfade.trainer.model.allreduce import require_horovod
from crossfade.trainer.runs.resumption import find_start, last_saved_step
from crossfade.trainer.runs.run_folder import JOB_FILE, RunFolder
from crossfade.trainer.runs.run_lock import DONE, FAILED, LOCK_FILE, STOPPED
from crossfade.trainer.tracking.tracker import check_tracking

_OTHER_BYTES = 2**24
"""Bytes of logs, events, and metrics of a run."""
_PORTS_PER_ROLE = 2
"""Ports of a role on several hosts: that of the store, and that of its metrics."""


class JobChecks:
    """Checks of ``job`` with the run folder ``run``; later ones use what earlier ones have found."""

    def __init__(self, job: JobConfig, run: RunFolder) -> None:
        self.job = job
        self.run = run
        self.in_progress = False
        self._inputs: PlanInputs | None = None
        self._plan: CapacityPlan | None = None

    def check_packages(self) -> Iterator[Finding]:
        """Check that the optional packages that the job needs are installed."""
        try:
            check_tracking(self.job)
            if self.job.train.engine == "torch":
                require_torch()
            if self.job.needs_horovod:  # MXNet is checked separately
                require_horovod()
        except MissingExtraError as error:
            yield Finding("packages", "fix", error.worded(as_typed))

    def check_run(self) -> Iterator[Finding]:
        """Check the run folder: whether a run is in progress there, or can be resumed."""
        path = self.run.path
        if not path.exists():
            yield Finding("run", "ok", f"{path}: does not exist yet")
            return
        with folder_lock(path.parent):  # so that a command that starts does not mistake this one for a run
            self.in_progress = self.run.lock.is_held()
        self.run.check_readable()
        lock = path / LOCK_FILE
        ended = lock.read_text(encoding="ascii") if lock.exists() else ""
        if self.in_progress:
            yield Finding("run", "ok", f"{path}: a run is in progress, so that memory and ports are not compared")
        elif ended in ("", DONE):
            yield Finding("run", "ok", f"{path}: {'its run is finished' if ended else 'has no run yet'}")
        else:
            find_start(self.run.checkpoints(self.job), saved_step=last_saved_step(path), allow_restart=False)
            expected = {FAILED: "its run has failed, or was interrupted", STOPPED: "its run was stopped"}
            found = expected.get(ended, "its run was killed")
            state: State = "ok" if ended in expected else "warning"
            resume = command("train", str(path / JOB_FILE), run_dir=str(path), resume=True)
            yield Finding("run", state, f"{path}: {found}; to resume it: {resume}")

    def check_checkpoints(self) -> Iterator[Finding]:
        """Check that no checkpoint is corrupt or of another format, as far as that is known without reading values."""
        where = self.run.checkpoints(self.job)
        entries = list_checkpoints(where)
        complete = [entry for entry in entries if entry.state == "complete"]
        yield Finding("checkpoints", "ok", f"{where}: {len(complete)} complete")
        for entry in entries:
            if entry.state in ("corrupt", "other format"):
                fix = command("checkpoints list", where, verify=True)
                yield Finding("checkpoints", "warning", f"step {entry.step} is not used: {entry.detail}; {fix}")

    def check_data(self) -> Iterator[Finding]:
        """Check that the dataset fits the job, and that its vocabularies can be read."""
        inputs = read_inputs(self.job)
        check_vocabularies(inputs.folder, inputs.manifest)
        self._inputs = inputs
        rows = ", ".join(f"{entity.rows:,} of {name}" for name, entity in inputs.manifest.entities.items())
        yield Finding("data", "ok", f"{inputs.folder.uri}: {counted(inputs.selection.rows, 'interaction')}, {rows}")

    def check_memory(self) -> Iterator[Finding]:
        """Check that the processes of the job fit the memory of this host, as ``crossfade plan`` counts it."""
        if self._inputs is None:
            yield Finding("memory", "warning", "not compared, since the dataset cannot be read")
            return
        inputs, machine = self._inputs.with_counts(), this_machine()
        self._plan = plan = plan_local_host(inputs)
        if self.in_progress:
            return
        fit = check_fit(inputs, plan, machine)
        needs = f"{format_gib(plan.required_bytes)}, at most {format_gib(plan.peak_bytes)}"
        found = f"the job needs {needs}; {format_gib(machine.available_bytes)} are free"
        advice = f"; {' or '.join(fit.advice) or 'use larger hosts'}"
        match fit.verdict:
            case "fits":
                yield Finding("memory", "ok", found)
            case "tight":
                yield Finding("memory", "warning", f"{found}{advice}")
            case "does not fit":
                yield Finding("memory", "fix", f"{found}{advice}")

    def check_disks(self) -> Iterator[Finding]:
        """Check that the disks of the run folder and of the checkpoints can be written and have enough room."""
        checkpoints = Folder(self.run.checkpoints(self.job)).path
        by_disk: dict[int, list[Path]] = {}
        for path in (self.run.path, *([checkpoints] if checkpoints is not None else [])):
            by_disk.setdefault(_existing(path).stat().st_dev, []).append(path)
        for paths in by_disk.values():
            yield self._check_disk(paths, checkpoints)

    def _check_disk(self, paths: list[Path], checkpoints: Path | None) -> Finding:
        """Check the disk that all of ``paths`` are on."""
        shown = str(paths[0])
        for path in paths:
            if not os.access(_existing(path), os.W_OK | os.X_OK):
                return Finding("disk", "fix", f"{path}: cannot be written; change its mode, or mount it for writing")
        place = _existing(paths[0])
        free = shutil.disk_usage(place).free
        least, most = self._bytes(paths, checkpoints)
        found = f"{shown}: {size(free)} are free"
        if self._plan is not None:
            found += f", and the run may write {size(most)} more"
        if hasattr(os, "statvfs") and (disk := os.statvfs(place)).f_files and not disk.f_favail:
            return Finding("disk", "fix", f"{shown}: the disk has no free inode; delete files")
        if free < least or (free < most and not self.in_progress):
            fix = "make room, lower checkpoint.keep_latest, or set checkpoint.path"
            return Finding("disk", "fix" if free < least else "warning", f"{found}; {fix}")
        return Finding("disk", "ok", found)

    def _bytes(self, paths: list[Path], checkpoints: Path | None) -> tuple[int, int]:
        """Return what a run at least, and at most, adds to a disk with ``paths``."""
        least = most = _OTHER_BYTES if self.run.path in paths else 0
        tables = self._plan.tables if self._plan is not None else ()
        checkpoint = sum(table.weights_bytes + table.state_bytes for table in tables)
        if checkpoints is not None and checkpoints in paths:
            there = sum(Folder(checkpoints).sizes().values())
            least += checkpoint
            most += max(checkpoint, (self.job.checkpoint.keep_latest + 1) * checkpoint - there)
        if self.run.path in paths and self.job.train.save_embeddings == "best":
            most += 2 * sum(table.weights_bytes for table in tables)  # the best so far, and those that replace them
        return least, most

    def check_ports(self) -> Iterator[Finding]:
        """Check that the ports of the job are free, and that its hosts can join."""
        cluster, metrics = self.job.cluster, self.job.metrics
        if self.in_progress:
            return
        count = 1
        if cluster.is_distributed:
            check_hosts(cluster)
            count += _PORTS_PER_ROLE * len(list(roles(cluster)))
        if cluster.workers_hold_tables or self.job.needs_horovod:
            count += 1  # of the rendezvous
        if metrics.port:
            check_free_port("metrics.port", Address(metrics.host or cluster.host, metrics.port))
        if cluster.is_distributed and cluster.coordinator_address is not None:
            address = Address.parse(cluster.coordinator_address, "cluster.coordinator_address")
            check_free_port("cluster.coordinator_address", address)
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(socket.socket()).bind((cluster.host, 0))
        yield Finding("ports", "ok", f"as many as the job needs ({count:,}) are free on {cluster.host}")


def _existing(path: Path) -> Path:
    """Return ``path`` or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


_AGE_SECONDS = 24 * 3600
"""Age of what counts as left, as in ``crossfade checkpoints clean``."""
_STAGED = re.compile(r"\.(?P<name>.+)\.(partial-[0-9a-f]{8}(\.work)?|old)")
"""Folders and files that are being written, or replaced, beside their place."""
_CHECK = "leftovers"


def check_leftovers(job: JobConfig, run: RunFolder) -> Iterator[Finding]:
    """Report what is left of the job's commands, with the command that removes it."""
    found = [*_checkpoint_leftovers(job, run), *_staged_leftovers(job, run), *_lock_leftovers(job)]
    found += [f"{path}; rm -r {path}" for path in _old_work_folders()]
    for message in found:
        yield Finding(_CHECK, "warning", message)
    if not found:
        yield Finding(_CHECK, "ok", "none")


def _checkpoint_leftovers(job: JobConfig, run: RunFolder) -> Iterator[str]:
    checkpoints, before = run.checkpoints(job), time.time() - _AGE_SECONDS
    left = find_leftovers(checkpoints, before)
    if checkpoints.startswith("s3://") and find_spec("boto3") is not None:
        try:
            left += find_uploads(checkpoints, before)
        except CrossfadeError as error:  # training needs neither the right to list them nor a region
            yield f"unfinished uploads were not listed: {error}"
    if left:
        kinds = ", ".join(sorted({f"{leftover.kind}s" for leftover in left}))
        total = size(sum(leftover.bytes for leftover in left))
        yield f"{checkpoints}: {len(left)}, {total} ({kinds}); {command('checkpoints clean', checkpoints)}"
    with suppress(FileNotFoundError):
        files = [path for path in run.unfinished_files() if path.stat().st_mtime <= before]
        if files:
            yield f"{run.path}: {len(files)} temporary files; {command('checkpoints clean', str(run.path))}"


def _staged_leftovers(job: JobConfig, run: RunFolder) -> Iterator[str]:
    """Yield what is beside the dataset and in the run folder and no running process writes."""
    data = Folder(job.data.path).path
    folders = [(run.path, "*")] + ([(data.absolute().parent, data.name)] if data is not None else [])
    for folder, wanted in folders:
        for path in sorted(folder.glob(".*")):
            match = _STAGED.fullmatch(path.name)
            if match is None or wanted not in ("*", match["name"]):
                continue
            lock = folder / f".{match['name']}.lock"
            if not lock.exists() or ended_owner(read_regular(lock)):
                yield f"{path}: of a command that was killed; the next one that writes {match['name']} deletes it"


def _lock_leftovers(job: JobConfig) -> Iterator[str]:
    """Yield locks of the dataset whose owner has ended: the next command takes them over."""
    data = Folder(job.data.path)
    with suppress(FileNotFoundError):
        owner = ended_owner(data.read(LOCK_NAME))
        if owner is not None:
            yield f"{data.uri}/{LOCK_NAME}: the lock of {owner}, which has ended; the next command takes it over"
    if data.path is not None:
        lock = data.path.absolute().with_name(f".{data.path.name}.lock")
        with suppress(FileNotFoundError):
            owner = ended_owner(read_regular(lock))
            if owner is not None:
                yield f"{lock}: the lock of {owner}, which has ended; the next command takes it over"


def _old_work_folders() -> Iterator[Path]:
    """Yield the folders of temporary files of ``crossfade prepare`` that nothing has changed for a day."""
    for path in sorted(Path(tempfile.gettempdir()).glob("crossfade-prepare-*")):
        with suppress(FileNotFoundError):
            newest = max(found.stat().st_mtime for found in (path, *path.rglob("*")))
            if newest <= time.time() - _AGE_SECONDS:
                yield path
