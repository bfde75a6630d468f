"""Answer questions from the trained models of runs, which are opened in the background from copies on this machine.

    with closing(ExploredModels()) as models:
        found = models.ask(Path("runs/lastfm"), lambda version: version.names["artist"].search("radio", 10))
        found is None       # the model is not open yet: ask again

The first question about a run, or about embeddings that it has written since, begins to prepare its model.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.deploy.dashboard.bounded_lock import BoundedLock, BusyError
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.recommend.trained_model import TrainedModel, source_fingerprint, with_trained_model
from crossfade.trainer.runs.options import ModelSource
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.serving.copies_folder import CopiesFolder
from crossfade.trainer.serving.version import Version, open_version
from crossfade.trainer.serving.version_folder import VersionOptions, write_version

MAX_OPEN = 4
_OPTIONS = VersionOptions(index_from=None)
_logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class _PreparedModel:
    """A model that is being prepared, or is open. ``lock`` has it used by one thread at a time."""

    def __init__(self, source: ModelSource, fingerprint: str, folder: Path) -> None:
        self.source, self.fingerprint, self.folder = source, fingerprint, folder
        self.lock = BoundedLock("the model")
        self.version: Version | None = None
        self.error: CrossfadeError | None = None

    def open(self) -> None:
        """Copy the model and open the copy; keep the error if that fails."""
        try:
            with_trained_model(self.source, _logger.warning, self._copy)
            self.version = open_version(self.folder)
        except (CrossfadeError, OSError) as error:
            self.error = error if isinstance(error, CrossfadeError) else CrossfadeError(str(error))
        except Exception as error:  # a failure must not leave the page waiting
            _logger.exception(f"{self.source.source}: its model cannot be prepared")
            self.error = CrossfadeError(str(error))

    def _copy(self, model: TrainedModel) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # what an attempt with a corrupt checkpoint has left
        write_copy(model, self.folder, shutil.disk_usage(self.folder.parent).free)

    def close(self) -> None:
        """Close the model after the answer that is being given, and delete the copy.

        Where the answer takes long, the copy stays until the dashboard ends.
        """
        with suppress(BusyError), self.lock:
            if self.version is not None:
                self.version.close()
                self.version = None
            shutil.rmtree(self.folder, ignore_errors=True)


class ExploredModels:
    """The models of runs, by the folder of the run; those that were used last stay open. Thread-safe."""

    def __init__(self) -> None:
        """Begin without a model."""
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        """Has one model prepared at a time."""
        self._models: OrderedDict[Path, _PreparedModel] = OrderedDict()
        self._folder: CopiesFolder | None = None

    def ask(self, run: Path, question: Callable[[Version], Answer]) -> Answer | None:
        """Return the answer of the model of ``run`` to ``question``; None while the model is being prepared.

        Raises:
            CrossfadeError: the run has no model, or it could not be prepared, which the next question tries again.
        """
        fingerprint = _fingerprint(run)
        with self._lock:
            model = self._models.get(run)
            if model is None or (model.fingerprint != fingerprint and model.version is not None):
                model = self._prepare(run, fingerprint)
            self._models.move_to_end(run)
            if model.error is not None:
                del self._models[run]
                raise model.error
        with model.lock:
            return None if model.version is None else question(model.version)

    def _prepare(self, run: Path, fingerprint: str) -> _PreparedModel:
        """Begin to prepare the model of ``run``, and drop the model that was used least recently."""
        self._folder = self._folder or CopiesFolder()
        source = ModelSource(source=str(run))
        model = _PreparedModel(source, fingerprint, self._folder.new_path())
        dropped = [self._models.pop(run, None)]
        self._models[run] = model
        if len(self._models) > MAX_OPEN:
            dropped.append(self._models.popitem(last=False)[1])

        def open_in_turn() -> None:
            with self._turn:
                model.open()
            is_kept = model.error is None and self._models.get(run) is model
            for each in (*dropped, None if is_kept else model):
                if each is not None:
                    each.close()

        threading.Thread(target=open_in_turn, name="explore", daemon=True).start()
        return model

    def close(self) -> None:
        """Delete the copies of all models."""
        with self._lock:
            models = list(self._models.values())
            self._models.clear()
        for model in models:
            model.close()
        if self._folder is not None:
            self._folder.delete()


def _fingerprint(run: Path) -> str:
    try:
        return source_fingerprint(str(run))
    except InputError as error:
        RunFolder(run).job()  # an invalid job raises another error
        raise InputError("it has neither embeddings nor a complete checkpoint yet") from error


def write_copy(model: TrainedModel, path: Path, free_bytes: int) -> None:
    """Copy ``model`` to the new folder ``path``.

    Raises:
        InputError: its vectors take more than ``free_bytes``.
    """
    needed = sum(table.rows * table.dim * 4 for table in model.spec.vectors)
    if needed > free_bytes:
        raise InputError(
            f"{path.parent}: has no room for a copy of the vectors, {needed:,} bytes; set TMPDIR to a folder on a "
            "larger disk and start the dashboard again"
        )
    write_version(model, path, _OPTIONS, NullReporter())
