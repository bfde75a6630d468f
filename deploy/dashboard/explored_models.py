"""Answer questions from the trained models of runs, which are opened in the background from copies on this machine.

    with closing(ExploredModels()) as models:
        found = models.ask(Path("runs/lastfm"), lambda model: model.search("artist", "radio", 10))
        found.phase if isinstance(found, Preparing) else found

The first question about a run begins to prepare its model. When the run has other embeddings, they are prepared too,
and the earlier ones answer until they are open. The models that were used last stay open.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.deploy.dashboard.bounded_lock import BoundedLock, BusyError
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.trained_model import TrainedModel, source_fingerprint, with_trained_model
from crossfade.trainer.runs.options import ModelSource
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.serving.copies_folder import CopiesFolder
from crossfade.trainer.serving.version import open_version
from crossfade.trainer.serving.version_folder import VersionOptions, write_version

MAX_OPEN = 4
_OPTIONS = VersionOptions(index_from=None)
_logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Preparing:
    """A model that is not open yet: what is being done, and which share of that is done, None if it is unknown."""

    phase: str
    share: float | None


class _Progress:
    """Keeps the progress of one thread for any other."""

    def __init__(self) -> None:
        self._phase: tuple[str, int | None] = "waiting for another model", None
        self._done = 0

    def phase(self, name: str, total: int | None, unit: str) -> None:
        self._done = 0
        self._phase = name, total

    def advance(self, amount: int) -> None:
        self._done += amount

    def read(self) -> Preparing:
        name, total = self._phase
        return Preparing(name, min(self._done / total, 1.0) if total else None)


@dataclass
class _Preparation:
    """The preparation of the model of ``run`` whose fingerprint was ``fingerprint`` when it began."""

    run: Path
    fingerprint: str
    progress: _Progress = field(default_factory=_Progress)
    error: CrossfadeError | None = None


class _OpenModel:
    """An open model and the copy that it is read from. ``lock`` has it used by one thread at a time."""

    def __init__(self, fingerprint: str, folder: Path) -> None:
        self.fingerprint = fingerprint
        self.version = open_version(folder)
        self.lock = BoundedLock("the model")
        self.closed = False
        self._folder = folder

    def close(self) -> None:
        """Close the model and delete its copy; a question that is being answered does so at its end."""
        self.closed = True
        with suppress(BusyError), self.lock:
            self.version.close()
            shutil.rmtree(self._folder, ignore_errors=True)


class ExploredModels:
    """The models of runs, by the folder of the run. Thread-safe."""

    def __init__(self, *, history_from_this_dataset_only: bool = False) -> None:
        """Begin without a model; ``history_from_this_dataset_only`` does without base datasets."""
        self._history_from_this_dataset_only = history_from_this_dataset_only
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        """Has one model prepared at a time."""
        self._open: OrderedDict[Path, _OpenModel] = OrderedDict()
        self._preparations: dict[Path, _Preparation] = {}
        self._folder: CopiesFolder | None = None
        self._closed = False

    def ask(self, run: Path, question: Callable[[Model], Answer]) -> Answer | Preparing:
        """Return the answer of the model of ``run`` to ``question``, or how far its preparation is.

        Raises:
            CrossfadeError: the run has no model, or it could not be prepared, which the next question tries again.
        """
        fingerprint = _fingerprint(run)
        while True:
            with self._lock:
                model = self._open.get(run)
                if model is None:
                    return self._wait_for(self._prepare(run, fingerprint))
                if model.fingerprint != fingerprint:
                    self._prepare(run, fingerprint)
                self._open.move_to_end(run)
            try:
                with model.lock:
                    if not model.closed:
                        return question(model.version.model)
            finally:
                if model.closed:
                    model.close()

    def close(self) -> None:
        """Close all models and delete their copies; a preparation that is under way fails."""
        with self._lock:
            self._closed = True
            models = list(self._open.values())
            self._open.clear()
        for model in models:
            model.close()
        if self._folder is not None:
            self._folder.delete()

    def _wait_for(self, preparation: _Preparation) -> Preparing:
        """Return the progress of ``preparation``, or raise its error and forget it."""
        if preparation.error is None:
            return preparation.progress.read()
        del self._preparations[preparation.run]
        raise preparation.error

    def _prepare(self, run: Path, fingerprint: str) -> _Preparation:
        """Return the preparation that is under way or has failed with ``fingerprint``; otherwise, begin one."""
        known = self._preparations.get(run)
        if known is not None and (known.error is None or known.fingerprint == fingerprint):
            return known
        preparation = _Preparation(run, fingerprint)
        self._preparations[run] = preparation
        threading.Thread(target=self._open_model, args=[preparation], name="explore", daemon=True).start()
        return preparation

    def _open_model(self, preparation: _Preparation) -> None:
        """Open the model, in a background thread; keep the error if that fails."""
        run = preparation.run
        try:
            with self._turn:
                folder = self._copies()
                path = folder.new_path()
                preparation.progress.phase("reading the run", None, "")

                def copy(model: TrainedModel) -> None:
                    _write_copy(model, path, folder.free_bytes(), preparation.progress)

                only = self._history_from_this_dataset_only
                source = ModelSource(source=str(run), history_from_this_dataset_only=only)
                with_trained_model(source, _logger.warning, copy)
                model = _OpenModel(preparation.fingerprint, path)
        except Exception as error:  # a failure must not leave the page waiting
            if not isinstance(error, CrossfadeError | OSError):
                _logger.exception(f"{run}: its model cannot be prepared")
            if run in self._open:
                _logger.warning(f"{run}: the new embeddings cannot be opened, the earlier ones answer: {error}")
            preparation.error = error if isinstance(error, CrossfadeError) else CrossfadeError(str(error))
        else:
            self._keep(preparation, model)

    def _copies(self) -> CopiesFolder:
        with self._lock:
            if self._closed:
                raise CrossfadeError("the dashboard is ending")
            self._folder = self._folder or CopiesFolder()
            return self._folder

    def _keep(self, preparation: _Preparation, model: _OpenModel) -> None:
        """Keep ``model`` open instead of the earlier one of its run, and not too many of other runs."""
        with self._lock:
            dropped = [self._open.pop(preparation.run, None)]
            del self._preparations[preparation.run]
            self._open[preparation.run] = model
            while len(self._open) > (0 if self._closed else MAX_OPEN):
                dropped.append(self._open.popitem(last=False)[1])
        for each in dropped:
            if each is not None:
                each.close()


def _fingerprint(run: Path) -> str:
    try:
        return source_fingerprint(str(run))
    except InputError as error:
        RunFolder(run).job()  # an invalid job raises another error
        raise InputError("it has neither embeddings nor a complete checkpoint yet") from error


def _write_copy(model: TrainedModel, path: Path, free_bytes: int, progress: _Progress) -> None:
    needed = sum(table.rows * table.dim * 4 for table in model.spec.vectors)
    if needed > free_bytes:
        raise InputError(
            f"{path.parent}: has no room for a copy of the vectors, {needed:,} bytes; set TMPDIR to a folder on a "
            "larger disk and start the dashboard again"
        )
    shutil.rmtree(path, ignore_errors=True)  # what an attempt with a corrupt checkpoint has left
    write_version(model, path, _OPTIONS, progress)
