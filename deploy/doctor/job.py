"""Check a job on this host: its run folder, its dataset, and whether memory, disks, and ports suffice."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from crossfade.base.errors import InputError, MissingExtraError
from crossfade.base.formatting import size
from crossfade.base.io.file_lock import folder_lock
from crossfade.base.io.folder import Folder
from crossfade.deploy.capacity.fit import check_fit, format_gib, plan_local_host
from crossfade.deploy.capacity.inputs import PlanInputs, read_inputs
from crossfade.deploy.capacity.machine import this_machine
from crossfade.deploy.capacity.plan import CapacityPlan
from crossfade.deploy.cluster.supervision import check_hosts
from crossfade.deploy.doctor.findings import Finding, State
from crossfade.deploy.topology import Address, scheduler_address
from crossfade.kvstore.checkpoint.inventory import list_checkpoints
from crossfade.kvstore.torch.imports import require_torch
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.vocabulary import check_vocabularies
from crossfade.trainer.model.allreduce import require_horovod
from crossfade.trainer.runs.folder import JOB_FILE, RunFolder
from crossfade.trainer.runs.resumption import find_start, last_saved_step
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
            if self.job.all_reduces_dense:
                require_horovod()
        except MissingExtraError as error:
            yield Finding("packages", "fix", str(error))

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
            resume = f"crossfade train {path / JOB_FILE} --run-dir {path} --resume"
            yield Finding("run", state, f"{path}: {found}; to resume it: {resume}")

    def check_checkpoints(self) -> Iterator[Finding]:
        """Check that no checkpoint is corrupt or of another format, as far as that is known without reading values."""
        where = self.run.checkpoints(self.job)
        entries = list_checkpoints(where)
        complete = [entry for entry in entries if entry.state == "complete"]
        yield Finding("checkpoints", "ok", f"{where}: {len(complete)} complete")
        for entry in entries:
            if entry.state in ("corrupt", "other format"):
                fix = f"crossfade checkpoints list {where} --verify"
                yield Finding("checkpoints", "warning", f"step {entry.step} is not used: {entry.detail}; {fix}")

    def check_data(self) -> Iterator[Finding]:
        """Check that the dataset fits the job, and that its vocabularies can be read."""
        inputs = read_inputs(self.job)
        check_vocabularies(inputs.folder, inputs.manifest)
        self._inputs = inputs
        rows = ", ".join(f"{entity.rows:,} of {name}" for name, entity in inputs.manifest.entities.items())
        yield Finding("data", "ok", f"{inputs.folder.uri}: {inputs.selection.rows:,} interactions, {rows}")

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
        if cluster.servers:
            check_hosts(cluster)
            scheduler_address(cluster)
            count += _PORTS_PER_ROLE * (1 + cluster.servers + cluster.workers)
        if metrics.port:
            _check_free("metrics.port", Address(metrics.host or cluster.host, metrics.port))
        if cluster.servers and cluster.coordinator_address is not None:
            address = Address.parse(cluster.coordinator_address, "cluster.coordinator_address")
            _check_free("cluster.coordinator_address", address)
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(socket.socket()).bind((cluster.host, 0))
        yield Finding("ports", "ok", f"as many as the job needs ({count:,}) are free on {cluster.host}")


def _existing(path: Path) -> Path:
    """Return ``path`` or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _check_free(key: str, address: Address) -> None:
    """Check that a process can listen on ``address``, the value of ``key``.

    Raises:
        InputError: it cannot.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise InputError(f"{key}: cannot listen on {address}: {error.strerror}; name another port") from error
