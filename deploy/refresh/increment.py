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
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from crossfade.base.command_line import command_line
from crossfade.base.errors import (
    ClusterError,
    CrossfadeError,
    InputError,
    OptionError,
    escape_unprintable,
    plain_words,
)
from crossfade.base.io.durable_file import link_or_copy, replace_file
from crossfade.base.io.folder import Folder
from crossfade.base.io.output import staged_folder
from crossfade.base.io.replacing import replace_folder
from crossfade.base.io.writer_lock import LOCK_NAME
from crossfade.base.options import alternatives
from crossfade.deploy.launch.trial_run import TrialProcess, TrialRun
from crossfade.deploy.refresh.event_files import Arrivals, find_arrivals, find_changed, find_event_files
from crossfade.deploy.refresh.judging import decide
from crossfade.deploy.refresh.remote import locked_versions, set_remote
from crossfade.deploy.refresh.service_file import ServiceConfig, note_service_file
from crossfade.deploy.refresh.versions import PLAN_FILE, Plan, ServiceVersions, VersionRecord
from crossfade.trainer.data.manifest import FILE_NAME, read_manifest
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.faults import FaultyFilesError, NoInteractionError
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
            note_service_file(self.config)
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
            try:
                record = self._make_version(progress, stop_requested, deferred, publish=publish)
            except Exception as error:
                self.versions.note_failure(error)
                raise
            self.versions.note_failure(None)
        return record

    def _make_version(
        self,
        progress: ProgressReporter,
        stop_requested: StopRequested,
        deferred: Callable[[], AbstractContextManager[object]],
        *,
        publish: bool,
    ) -> VersionRecord | None:
        """Plan, prepare, train, judge, and publish the next version, as ``refresh`` describes it."""
        self._check_deletion()
        self._clean()
        seconds: dict[str, float] = {}
        with _timed(seconds, "prepare"):
            plan = self._plan_and_prepare(progress, again=publish)
        if plan is None:
            return None
        with _timed(seconds, "train"), deferred():
            report = self._train(plan, progress, stop_requested)
        if report is None:
            return None
        manifest = read_manifest(Folder(str(self.versions.data_path(plan.number))))
        record = decide(plan, manifest, report, self._metric, None if publish else self.config.guard, seconds)
        self.versions.write(record)
        (self.folder / PLAN_FILE).unlink(missing_ok=True)
        self._clean()
        return record

    def _plan_and_prepare(self, progress: ProgressReporter, *, again: bool) -> Plan | None:
        """Plan the next version, and prepare its dataset, without files that cannot be read if they may be left out.

        Raises:
            InputError: a file is invalid, or a pattern has never matched one.
        """
        plan = self._plan(again=again)
        while plan is not None:
            found = find_event_files(self.config).files
            try:
                self._prepare(plan, found, progress)
            except FaultyFilesError as error:
                plan = self._set_aside(plan, found, error, again=again)
            except NoInteractionError:
                if self.versions.current is None:
                    raise
                empty = ", ".join(file.uri for file in plan.files)
                _logger.warning(escape_unprintable(f"no events are in new files, which wait for the next one: {empty}"))
                return None
            else:
                return plan
        return None

    def _set_aside(self, plan: Plan, found: Mapping[str, Source], error: FaultyFilesError, *, again: bool) -> Plan:
        """Return ``plan`` with the files that ``error`` names set aside, if others are left to make a version of.

        If all new files are faulty, the options may be wrong, and no sound file is kept waiting. Files of a rejected or
        withdrawn version are not new, unless they are to be published ``again``.

        Raises:
            FaultyFilesError: no file may be set aside.
        """
        names = {uri: str(file) for uri, file in found.items()}
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
            raise InputError(f"{self.folder}: a deletion of IDs was interrupted; first repeat it, with the same IDs")

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

        Raises:
            InputError: a pattern matches no file before the first version.
        """
        base = None if self.versions.current is None else self.versions.current.number
        plan = self.versions.plan()
        if self.versions.must_forget and plan is not None and plan.files:
            plan = None  # it may have events of the IDs
        if plan is not None and (plan.number, plan.base) == (self.versions.next_number, base):
            is_prepared = (self.versions.data_path(plan.number) / FILE_NAME).exists()
            if is_prepared and find_changed(self.config, plan.files) is None:
                return plan
        files = []
        if not self.versions.must_forget:
            arrivals = self.find_arrivals()
            if base is None and arrivals.unmatched:
                raise InputError(f"{self.config.source}: events: no file matches {arrivals.unmatched[0]}")
            files = arrivals.plan()
            if not files or (self.versions.tried() >= set(files) and not again):
                return None
        found = Plan(number=self.versions.next_number, base=base, files=files)
        if found != plan:
            self.versions.discard(found.number)
            self.versions.write_plan(found)
        return found

    def _prepare(self, plan: Plan, found: Mapping[str, Source], progress: ProgressReporter) -> None:
        """Prepare the dataset of the new events, which are in files of ``found``, unless that was done.

        Raises:
            InputError: a file is invalid, or was changed while it was read.
        """
        out = self.versions.data_path(plan.number)
        if (out / FILE_NAME).exists():
            return
        if plan.files:
            files = [str(found[file.uri]) for file in plan.files if file.uri in found and not file.is_faulty]
            base = None if plan.base is None else str(self.versions.data_path(plan.base))
            try:
                prepare(self.config.prepare_options(files, out, base), progress)
            except InputError as error:
                error.args = (error.worded(_as_key),)
                raise
        else:
            assert plan.base is not None
            _copy_dataset(self.versions.data_path(plan.base), out)
        if (changed := find_changed(self.config, plan.files)) is not None:
            self.versions.discard(plan.number)
            raise InputError(
                f"{changed}: was changed or deleted while it was read, and is read again by the next attempt; write "
                "event files under another name first, and rename them when they are complete"
            )

    def _train(self, plan: Plan, progress: ProgressReporter, stop_requested: StopRequested) -> dict[str, Any] | None:
        """Train the version, or resume that, and return its report; None if a stop was requested.

        Raises:
            ClusterError: the training failed.
        """
        run = TrialRun(self.folder.absolute(), self.versions.run_path(plan.number).name, self._process)
        self._start_over_if_changed(self._job_of(plan), run)
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

    def _start_over_if_changed(self, job: str, run: TrialRun) -> None:
        """Discard a training that was started with another job: the file of the service has been edited since."""
        path = self.folder / JOB_FILE
        if not path.exists() or path.read_bytes() != job.encode():
            run.discard()
            replace_file(path, job.encode())

    def roll_back(self, to: int | None) -> list[int]:
        """Publish an earlier version again, the one before the current or ``to``; return the versions withdrawn.

        Raises:
            InputError: there is no such version.
        """
        with self.locked():
            if self.versions.forgotten is not None:
                raise InputError(
                    f"{self.folder}: earlier versions may have vectors of IDs that were forgotten; first publish a "
                    f"version without them: {command_line('refresh', self.config.source)}"
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


def _as_key(name: str, value: object) -> str:
    """Return an option of ``prepare`` as the file of a service has it."""
    return f"prepare.{plain_words(name, value)}"


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
