"""Keep the versions of a model: one process writes them, the others open the current one.

    versions = Versions(folder)
    versions.publish(write_version(...))
    name = versions.current()

    FOLDER/current          the name of the version to serve
    FOLDER/000001/          a version (trainer/serving/version_folder.py)

The version before the current one is kept, since a process may be opening it.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.serving.metrics import record_refresh
from kvstore.errors import CrossfadeError
from trainer.data.background import yield_to_computation
from trainer.data.reporter import NullReporter, ProgressReporter
from trainer.recommend.trained_model import source_fingerprint, with_trained_model
from trainer.serving.version_folder import VersionCard, VersionOptions, write_version

_CURRENT = "current"
_logger = logging.getLogger(__name__)


class Versions:
    """The versions in one folder."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, which must exist."""
        self._folder = folder

    def current(self) -> str | None:
        """Return the name of the current version; None before the first."""
        try:
            return (self._folder / _CURRENT).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def path(self, name: str) -> Path:
        """Return the folder of the version ``name``."""
        return self._folder / name

    def next_path(self) -> Path:
        """Return the folder for the next version, which does not exist."""
        path = self.path(f"{int(self.current() or 0) + 1:06d}")
        shutil.rmtree(path, ignore_errors=True)  # of a version that could not be completed
        return path

    def publish(self, path: Path) -> None:
        """Make the version in ``path`` the current one, and delete those before the previous one."""
        partial = self._folder / f"{_CURRENT}.partial"
        partial.write_text(path.name, encoding="utf-8")
        partial.replace(self._folder / _CURRENT)
        for old in sorted(self._folder.glob("[0-9]" * 6))[:-2]:
            shutil.rmtree(old)


@dataclass(frozen=True)
class Source:
    """Where versions come from: a run or checkpoints, the dataset if it has moved, and what a version has."""

    location: str
    data: str | None
    options: VersionOptions


class Refresher:
    """Writes a version whenever the source has other vectors."""

    def __init__(self, source: Source, versions: Versions) -> None:
        """Write versions of ``source`` to ``versions``."""
        self._source = source
        self._versions = versions
        self._fingerprint: str | None = None
        self._stop = threading.Event()

    def refresh(self, reporter: ProgressReporter) -> VersionCard | None:
        """Write and publish a version if the source has changed since the last; otherwise, return None.

        Raises:
            CrossfadeError: the source cannot be read, or the version not be written.
            OSError: the version cannot be written.
        """
        fingerprint = source_fingerprint(self._source.location)
        if fingerprint == self._fingerprint:
            return None
        path = self._versions.next_path()
        card = with_trained_model(
            self._source.location,
            self._source.data,
            _logger.info,
            lambda model: write_version(model, _emptied(path), self._source.options, reporter),
        )
        self._versions.publish(path)
        self._fingerprint = fingerprint
        record_refresh("success")
        return card

    def run(self, seconds: float) -> None:
        """Refresh every ``seconds`` until ``stop``; a failure is logged, and the current version stays."""
        yield_to_computation()
        reported: str | None = None
        while not self._stop.wait(seconds):
            try:
                card = self.refresh(NullReporter())
            except (CrossfadeError, OSError) as error:
                record_refresh("failure")
                if str(error) != reported:
                    _logger.warning(f"no new version, the last one is still served: {error}")
                reported = str(error)
            else:
                reported = None
                if card is not None:
                    _logger.info(f"serving a new version of {card.model}")

    def start(self, seconds: float) -> Callable[[], None]:
        """Run in a thread; return what stops it."""
        thread = threading.Thread(target=self.run, args=[seconds], name="refresh", daemon=True)
        thread.start()
        return self._stop.set


def _emptied(path: Path) -> Path:
    """Delete what an attempt with a corrupt checkpoint has left in ``path``."""
    shutil.rmtree(path, ignore_errors=True)
    return path
