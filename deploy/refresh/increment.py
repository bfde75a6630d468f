"""Take new events into a service: plan, prepare, train, judge, publish, and clean up; each step resumes after a kill.

    with closing(RefreshedService(load_service(path))) as service:
        record = service.refresh(progress, stop_requested=lambda: False)      # None: there was nothing new

What an increment takes is written before anything is done with it (``plan.json``), and every later step is
deterministic or replaces its result atomically, so a service that was killed at any moment ends with the bytes of one
that was not. A file is taken by its URI, once: into the version that is published with its events. A failed step leaves
the plan and the version that is served.

Where IDs were forgotten since the version that is served, the next one takes no events: it continues that version on a
copy of its dataset, from which they were deleted, for one epoch, which begins by resetting their rows. It is published
whatever its metric is, and the versions before it, which have their vectors, are deleted.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from crossfade.base.errors import ClusterError, CrossfadeError, InputError, OptionError, command, escape_unprintable
from crossfade.base.io.durable_file import link_or_copy, replace_file
from crossfade.base.io.folder import Folder
from crossfade.base.io.output import staged_folder
from crossfade.base.io.replacing import replace_folder
from crossfade.base.io.writer_lock import LOCK_NAME
from crossfade.base.options import alternatives
from crossfade.deploy.launch.trial_run import TrialProcess, TrialRun
from crossfade.deploy.refresh.event_files import Arrivals, find_arrivals, find_changed, find_event_files
from crossfade.deploy.refresh.judging import judge
from crossfade.deploy.refresh.remote import locked_versions, set_remote
from crossfade.deploy.refresh.service_file import ServiceConfig
from crossfade.deploy.refresh.versions import PLAN_FILE, Plan, ServiceVersions, VersionRecord
from crossfade.trainer.data.manifest import FILE_NAME, DatasetManifest, read_manifest
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.faults import FaultyFilesError
from crossfade.trainer.prepare.input_files import Source
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.runs.run_folder import JOB_FILE, RunFolder

_logger = logging.getLogger(__name__)
StopRequested = Callable[[], bool]


class RefreshedService:
    """A service whose versions this process makes."""

    def __init__(self, config: ServiceConfig) -> None:
        self.config, self.folder = config, config.path
        self.versions = ServiceVersions(self.folder)
        self.arrivals: Arrivals | None = None
        """What the last search for event files found."""
        self._found: dict[str, Source] = {}  # all event files when a version was last prepared, by URI
        self._metric = config.metric()
        self._process = TrialProcess()

    def close(self) -> None:
        """End the process that trains."""
        self._process.close()

    @contextmanager
    def locked(self, progress: ProgressReporter | None = None) -> Iterator[None]:
        """Keep other processes from changing the service while the context lasts.

        Raises:
            InputError: one is changing it.
            StorageUnavailableError: it is kept on S3, which does not answer.
        """
        set_remote(self.folder, self.config.remote)
        with locked_versions(self.folder, progress) as self.versions:
            yield

    def find_arrivals(self) -> Arrivals:
        """Return the event files whose events are not in the current version.

        Raises:
            InputError: storage does not answer, or a file has no known format.
        """
        self.arrivals = find_arrivals(self.config, self.versions)
        return self.arrivals

    def refresh(
        self,
        progress: ProgressReporter,
        stop_requested: StopRequested,
        *,
        deferred: Callable[[], AbstractContextManager[object]] = nullcontext,
        publish: bool = False,
    ) -> VersionRecord | None:
        """Take the events that wait into a new version, and return it; None: none wait, or a stop was requested.

        After a deletion of IDs, a version without them, and without new events, comes first.

        Args:
            progress: receives the phases.
            stop_requested: whether to stop the training, after a checkpoint.
            deferred: a context for the training, in which a signal only requests a stop.
            publish: publish the version whatever its metric is.

        Raises:
            InputError: an event file or an option is invalid, or another process changes the service.
            ClusterError: the training failed.
            CrossfadeError: there is not enough memory or disk space.
        """
        with self.locked(progress):
            self._check_deletion()
            self._clean()
            seconds: dict[str, float] = {}
            with _timed(seconds, "prepare"):
                prepared = self._plan_and_prepare(progress, again=publish)
            if prepared is None:
                return None
            plan, manifest = prepared
            with _timed(seconds, "train"), deferred():
                report = self._train(plan, progress, stop_requested)
            if report is None:
                return None
            record = self._decide(plan, manifest, report, seconds, publish=publish)
            self.versions.write(record)
            (self.folder / PLAN_FILE).unlink(missing_ok=True)
            self._clean()
        return record

    def _plan_and_prepare(self, progress: ProgressReporter, *, again: bool) -> tuple[Plan, DatasetManifest] | None:
        """Plan the next version, and prepare its dataset, without files that cannot be read if they may be left out.

        Raises:
            InputError: a file is invalid, or no file was ever found.
        """
        plan = self._plan(again=again)
        while plan is not None:
            try:
                return plan, self._prepare(plan, progress)
            except FaultyFilesError as error:
                plan = self._set_aside(plan, error, again=again)
        if self.arrivals is not None and not self.versions.records and self.arrivals.has_no_file:
            raise InputError(f"{self.config.source}: events: no file matches {self.arrivals.unmatched[0]}")
        return None

    def _set_aside(self, plan: Plan, error: FaultyFilesError, *, again: bool) -> Plan:
        """Return ``plan`` with the files that ``error`` names set aside, if others are left to make a version of.

        If all new files are faulty, the options may be wrong, and no sound file is kept waiting. Files of a rejected or
        withdrawn version are not new, unless they are to be published ``again``.

        Raises:
            FaultyFilesError: no file may be set aside.
        """
        names = {uri: str(file) for uri, file in self._found.items()}
        sound = [file for file in plan.files if not file.is_faulty]
        faulty = {file.uri for file in sound if names.get(file.uri) in error.files}
        new = {file.uri for file in sound if again or file not in self.versions.tried()}
        if not self.config.sets_aside or not faulty or new <= faulty:
            raise error
        for uri in sorted(faulty):
            problem = error.files[names[uri]].removeprefix(f"{uri}: ")
            _logger.warning(escape_unprintable(f"{uri}: is set aside until it changes: {problem}"))
        files = [file.model_copy(update={"is_faulty": file.is_faulty or file.uri in faulty}) for file in plan.files]
        plan = plan.model_copy(update={"files": files})
        self.versions.write_plan(plan)
        return plan

    def _check_deletion(self) -> None:
        """Check that no deletion of IDs was interrupted, whose IDs would be in the next version.

        Raises:
            InputError: one was.
        """
        if self.versions.forgotten is not None and not self.versions.forgotten.complete:
            again = command("forget", str(self.folder), ids="FILE")
            raise InputError(f"{self.folder}: a deletion of IDs was interrupted: run {again} again")

    def _clean(self) -> None:
        """Delete versions that are not kept, or log why not: the service goes on, and the next version tries again."""
        try:
            self.versions.clean(self.config.keep_versions)
        except (CrossfadeError, OSError) as error:
            _logger.warning(f"{self.folder}: could not be cleaned up: {error}")

    def _plan(self, *, again: bool) -> Plan | None:
        """Return what the next version takes: as it was planned, unless its files have changed since.

        Events of a version that was rejected or withdrawn are taken once more with the first file that it did not have,
        or if they are to be published ``again``.
        """
        base = None if self.versions.current is None else self.versions.current.number
        plan = self.versions.plan()
        if self.versions.must_forget and plan is not None and plan.files:
            plan = None  # it may have events of the IDs
        if plan is not None and plan.is_read and (plan.number, plan.base) == (self.versions.next_number, base):
            has_data = (self.versions.data_path(plan.number) / FILE_NAME).exists()
            if has_data and find_changed(self.config, plan.files) is None:
                return plan
        files = []
        if not self.versions.must_forget:
            files = self.find_arrivals().plan()
            if not files or (self.versions.tried() >= set(files) and not again):
                return None
        found = Plan(number=self.versions.next_number, base=base, files=files)
        if found != plan:
            self.versions.discard(found.number)
            self.versions.write_plan(found)
        return found

    def _prepare(self, plan: Plan, progress: ProgressReporter) -> DatasetManifest:
        """Prepare the dataset of the new events, unless that was done.

        Raises:
            InputError: a file is invalid, or was changed while it was read.
        """
        out = self.versions.data_path(plan.number)
        if plan.is_read:
            return read_manifest(Folder(str(out)))
        self._found = find_event_files(self.config).files
        files = [str(self._found[file.uri]) for file in plan.files if file.uri in self._found and not file.is_faulty]
        if not (out / FILE_NAME).exists():
            if plan.files:
                base = None if plan.base is None else str(self.versions.data_path(plan.base))
                prepare(self.config.prepare_options(files, out, base), progress)
            else:
                assert plan.base is not None
                _copy_dataset(self.versions.data_path(plan.base), out)
        if (changed := find_changed(self.config, plan.files)) is not None:
            self.versions.discard(plan.number)
            raise InputError(
                f"{changed}: was changed or deleted while it was read, and is read again by the next attempt; write "
                "event files under another name first, and rename them when they are complete"
            )
        self.versions.write_plan(plan.model_copy(update={"is_read": True}))
        return read_manifest(Folder(str(out)))

    def _train(self, plan: Plan, progress: ProgressReporter, stop_requested: StopRequested) -> dict[str, Any] | None:
        """Train the version, or resume that, and return its report; None if a stop was requested.

        Raises:
            ClusterError: the training failed.
        """
        run = TrialRun(self.folder.absolute(), self.versions.run_path(plan.number).name, self._process)
        self._start_over_if_changed(plan, self._job_of(plan), run)
        if run.is_finished:
            return run.report()
        progress.phase("train", None, "epoch")
        code = run.train({"train.save_embeddings": "best"}, stop_requested, progress.advance)
        if code == 0:
            return run.report()
        if stop_requested():
            return None
        raise ClusterError(f"version {plan.number}: the training failed: {run.describe_failure()}")

    def _job_of(self, plan: Plan) -> str:
        """Return the job file of the version."""
        data = str(self.versions.data_path(plan.number).absolute())
        if plan.base is None:
            return self.config.first_job(data)
        base = RunFolder(self.versions.run_path(plan.base).absolute())
        popularity = base.report().get("popularity")
        return self.config.next_job(
            data,
            str(base.path / "checkpoints"),
            popularity and popularity["factor"],
            epochs=None if plan.files else 1,  # the model has seen these events
        )

    def _start_over_if_changed(self, plan: Plan, job: str, run: TrialRun) -> None:
        """Discard a training that was started with another job: the file of the service has been edited since."""
        known = self.versions.plan()
        if known is None or known.job != job:
            run.discard()
            replace_file(self.folder / JOB_FILE, job.encode())
            self.versions.write_plan(plan.model_copy(update={"is_read": True, "job": job}))

    def _decide(
        self,
        plan: Plan,
        manifest: DatasetManifest,
        report: dict[str, Any],
        seconds: dict[str, float],
        *,
        publish: bool,
    ) -> VersionRecord:
        """Return the record of the version that was trained: whether it may be published, and what it took."""
        judgment = judge(report, self._metric, self.config.guard)
        newest = manifest.source.get("last_timestamp")
        return VersionRecord(
            number=plan.number,
            status="published" if judgment.is_met or publish or not plan.files else "rejected",
            base=plan.base,
            files=plan.files,
            events=sum(split.rows for split in manifest.splits.values()) if plan.files else 0,
            newest=newest if isinstance(newest, int) else None,
            metric=self._metric,
            before=judgment.before if plan.files else None,
            after=judgment.after,
            decided=time.time(),
            seconds=seconds,
        )

    def roll_back(self, to: int | None) -> list[int]:
        """Publish an earlier version again, the one before the current or ``to``; return the versions withdrawn.

        Raises:
            InputError: there is no such version.
        """
        with self.locked():
            if self.versions.forgotten is not None:
                raise InputError(
                    f"{self.folder}: earlier versions may have vectors of IDs that were forgotten; run "
                    f"{command('refresh')} first, which publishes a version without them"
                )
            current = None if self.versions.current is None else self.versions.current.number
            if to is not None and to == current:
                return []  # such as after a rollback that was killed when it was almost complete
            newest = self.versions.kept[-self.config.keep_versions :]
            kept = [number for number in newest if number != current]
            if not kept:
                raise InputError(f"{self.folder}: has no earlier version to return to")
            if to is not None and to not in kept:
                raise OptionError(
                    "to", found=to, problem="is no earlier version that is kept", expected=alternatives(kept)
                )
            return self.versions.withdraw(kept[-1] if to is None else to)


def _copy_dataset(source: Path, out: Path) -> None:
    """Copy a dataset to a folder beside it."""
    with staged_folder(out) as staging:
        ignored = shutil.ignore_patterns(LOCK_NAME)
        # Files of datasets are replaced, never changed.
        shutil.copytree(source, staging, ignore=ignored, copy_function=link_or_copy, dirs_exist_ok=True)
        replace_folder(out, staging)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - begin, 3)
