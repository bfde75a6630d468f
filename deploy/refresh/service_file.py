"""The file of a service: where its events arrive, how they are prepared, what is trained, and when it is published.

config = load_service(Path("music.yaml"))
config.prepare_options(files, out, base)        # options of prepare for one increment
config.first_job(data)                          # the job file of its first version

name: music
events: [s3://music/events/*/*.parquet]
prepare: {query: customer=user_id, item: track=track_id, timestamp: at}
job: {train: {epochs: 20}}
increment_job: {train: {epochs: 4}}
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, ValidationError, field_validator

from crossfade.base.errors import InputError, OptionError, command
from crossfade.base.io.durable_file import replace_file
from crossfade.base.io.regular_files import read_below, read_regular
from crossfade.base.options import Integer
from crossfade.base.validation import format_validation_error
from crossfade.deploy.refresh.judging import Guard
from crossfade.trainer.config.auto_values import RANDOM_EPOCHS
from crossfade.trainer.config.loading import make_job, parse_job_text
from crossfade.trainer.config.schema import flattened
from crossfade.trainer.config.sections import Section
from crossfade.trainer.prepare.option_values import MAX_REPLAY
from crossfade.trainer.prepare.options import PrepareOptions

_MAX_BYTES = 1 << 16
_NOTE_FILE = "service.txt"
"""Where the file of a service is, in the folder of its versions."""
_KEYS_OF_JOBS = (
    "name",
    "data.path",
    "checkpoint.path",
    "checkpoint.keep_latest",
    "cluster.shared_run_dir",
    "evaluate.at_start",
    "metrics.port",
    "train.save_embeddings",
)
_DECIDED_KEYS = {
    "prepare": ("train", "valid", "test", "sample", "out", "overwrite", "skip_existing", "replay"),
    "job": _KEYS_OF_JOBS,
    "increment_job": (*_KEYS_OF_JOBS, "checkpoint.warm_start_from", "train.eval_every_epochs"),
}
"""Keys of the sections of the file that a service itself decides."""
S3Folder = Annotated[str, Field(pattern=r"^s3://[^/]+/[^/]")]
"""The URI of a folder on S3."""


class ServiceConfig(Section):
    """The file of a service."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field(description="name of the service")
    folder: str | None = Field(None, description="local folder of its datasets and versions; default: services/NAME")
    remote: S3Folder | None = Field(
        None, description="keep the service in this folder on S3; any host may make its next version, one at a time"
    )
    events: Annotated[list[str], Field(min_length=1)] = Field(
        description="event files: paths, s3:// addresses, and patterns (* ? [] **); each file is taken once"
    )
    prepare: dict[str, Any] = Field(
        default_factory=dict, description="options of prepare by name; base is the dataset that the first one extends"
    )
    job: dict[str, Any] = Field(default_factory=dict, description="keys of a job file, for every version")
    increment_job: dict[str, Any] = Field(
        default_factory=lambda: {"train": {"epochs": 4}},
        description="keys that replace those of job in versions that continue an earlier one",
    )
    replay: Annotated[float, Field(ge=0, le=MAX_REPLAY)] = Field(
        30.0,
        description="earlier interactions to train on again, at most, for each new one: first those of the customers "
        "who have new ones",
    )
    publish_if: str | None = Field(
        "ndcg@10 >= 0.98 * last",
        description="publish a version unless a metric on the new events that were held out is below this share of "
        "what the model that it continues reaches on them, by more than its standard error; null: always",
    )
    settle_seconds: Annotated[float, Field(ge=0)] = Field(
        5.0,
        description="leave a local file for the next time if it was written less than this before",
    )
    keep_versions: Annotated[Integer, Field(ge=2)] = Field(3, description="published versions to keep for a rollback")

    _source: Path = PrivateAttr(default_factory=lambda: Path.cwd() / "service.yaml")

    @field_validator("publish_if")
    @classmethod
    def _check_condition(cls, text: str | None) -> str | None:
        if text is not None:
            Guard.parse(text)
        return text

    @property
    def source(self) -> Path:
        """The path of the service file. Relative paths in it count from its folder."""
        return self._source

    @property
    def path(self) -> Path:
        """The folder of the service."""
        return Path(self._located(self.folder or f"services/{self.name}"))

    def event_patterns(self) -> list[str]:
        """Return the patterns of event files, for any current folder."""
        return [self._located_pattern(pattern) for pattern in self.events]

    def _located(self, path: str, folder: str | None = None) -> str:
        return path if "://" in path else str(Path(folder or self._source.parent, path))

    def _located_pattern(self, pattern: str) -> str:
        return self._located(pattern, glob.escape(str(self._source.parent)))

    def _located_job(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return ``values`` of a job with the path of what it starts from, for any current folder."""
        start = dict(flattened(values)).get("checkpoint.warm_start_from")
        if not isinstance(start, str):
            return values
        return _merged(values, {"checkpoint": {"warm_start_from": self._located(start)}})

    @property
    def sets_aside(self) -> bool:
        """Whether files that cannot be read are left out, as faulty lines are."""
        return self.prepare.get("on_bad_line") == "skip"

    @property
    def guard(self) -> Guard | None:
        """The condition under which versions are published; None: always."""
        return None if self.publish_if is None else Guard.parse(self.publish_if)

    def metric(self) -> str:
        """Return the metric by which versions are judged: that of the condition, or by which epochs are chosen."""
        guard = self.guard
        return guard.metric if guard is not None else make_job(self.first_job(), "job").evaluate.best_metric

    def prepare_options(self, files: Sequence[str], out: Path, base: str | None) -> PrepareOptions:
        """Return the options that prepare ``files`` as an increment of the dataset ``base``; None: as the first.

        Raises:
            OptionError: one is invalid.
        """
        given: dict[str, Any] = {**self.prepare, "train": files, "out": str(out)}
        for key in ("base", "work_dir"):
            if isinstance(given.get(key), str):
                given[key] = self._located(given[key])
        if base is not None:
            given |= {"base": base, "replay": self.replay or None}
        options = PrepareOptions.of(**given)
        of_features = {
            key: tuple(replace(file, path=self._located_pattern(str(file.path))) for file in getattr(options, key))
            for key in ("features", "content")
        }
        names = {entity: replace(file, path=self._located(str(file.path))) for entity, file in options.names.items()}
        return options.model_copy(update={**of_features, "names": names})

    def first_job(self, data: str = ".") -> str:
        """Return the job file of the first version, whose dataset is ``data``."""
        return json.dumps(_merged(self._located_job(self.job), {"name": self.name, "data": {"path": data}}))

    def next_job(self, data: str, checkpoints: str, popularity: float | None, epochs: int | None = None) -> str:
        """Return the job file of a version that continues another.

        Only its first and its last step are evaluated, so the embeddings that are served come from the last
        checkpoint, which the next version continues.

        Args:
            data: its dataset.
            checkpoints: what it continues.
            popularity: the factor of popularity in the version before, which ``auto`` keeps; None: there is none.
            epochs: epochs of its training; None: as the job says.
        """
        values = _merged(json.loads(self.first_job(data)), self._located_job(self.increment_job))
        job = make_job(json.dumps(values), f"{self.source}: increment_job")
        epochs = epochs or (RANDOM_EPOCHS if job.train.epochs == "auto" else job.train.epochs)
        own: dict[str, Any] = {
            "train": {"epochs": epochs, "eval_every_epochs": epochs},
            "evaluate": {"at_start": True},
            "checkpoint": {"warm_start_from": checkpoints},
        }
        if popularity is not None and job.model.popularity == "auto":
            own["model"] = {"popularity": popularity}
        return json.dumps(_merged(values, own))

    def check(self, source: str) -> None:
        """Check the job, also of increments, and the options of prepare.

        Raises:
            InputError: a key or an option is invalid.
        """
        for section, keys in _DECIDED_KEYS.items():
            for key in dict(flattened(getattr(self, section))).keys() & {*keys}:
                raise InputError(f"{source}: {section}.{key}: a service decides it; leave it out")
        make_job(self.first_job(), f"{source}: job")
        increment = make_job(self.next_job(".", "checkpoints", None), f"{source}: increment_job")
        guard = self.guard
        if guard is not None and int(guard.metric.partition("@")[2]) not in increment.evaluate.k:
            raise InputError(
                f"{source}: publish_if: the job does not evaluate {guard.metric}; add its cutoff to evaluate.k, now "
                f"{increment.evaluate.k}"
            )
        if guard is not None and self.prepare.get("hold_out_valid") == "none":
            raise InputError(
                f"{source}: publish_if: judges versions by events that are held out, of which prepare.hold_out_valid "
                "leaves none; leave that out, or set publish_if to null"
            )
        if self.remote is not None and not str(self.prepare.get("base") or self.remote).startswith("s3://"):
            raise InputError(f"{source}: prepare.base: must be on S3 too, since the service is kept at {self.remote}")
        try:
            self.prepare_options(["events"], Path("out"), None)
        except OptionError as error:
            raise InputError(f"{source}: prepare: {error}") from error


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings with ``changes``, which replace other values."""
    merged = dict(values)
    for key, value in changes.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def note_service_file(config: ServiceConfig) -> None:
    """Note in the folder of a service where its file is, from there, for commands that are given the folder."""
    source, note = config.source, config.path / _NOTE_FILE
    place = os.path.relpath(source.parent.resolve() / source.name, config.path.resolve()).encode()
    if not note.exists() or note.read_bytes() != place:
        replace_file(note, place)


def service_folder(location: str, *, remote: bool = False) -> str:
    """Return ``location``, or the folder of a service whose file is there; if it is kept on S3, with ``remote`` that.

    Raises:
        InputError: it is a file, but not of a service.
    """
    if "://" in location or not Path(location).is_file():
        return location
    config = load_service(Path(location))
    return (config.remote if remote else None) or str(config.path)


def load_service(path: Path) -> ServiceConfig:
    """Read and check the file of a service, which may be named by the folder of its versions.

    Raises:
        InputError: it is missing, or not the file of a service; the message names the key.
    """
    if (path / _NOTE_FILE).is_file():
        path = Path(os.path.normpath(path.resolve() / read_below(path, _NOTE_FILE).decode()))
    try:
        text = read_regular(path, _MAX_BYTES).decode()
    except FileNotFoundError:
        shown = command("refresh", help=True)
        raise InputError(f"{path}: no such file; expected the YAML file of a service: {shown} has one") from None
    except IsADirectoryError:
        raise InputError(
            f"{path}: is a folder without a service; expected the YAML file of a service, or the folder of its versions"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    values = parse_job_text(text, str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path}: not the file of a service: expected keys such as 'name:' and 'events:'")
    try:
        config = ServiceConfig.model_validate(values)
    except ValidationError as error:
        problem = format_validation_error(error, show_input=True, known=ServiceConfig.model_fields)
        raise InputError(f"{path}: {problem}") from error
    config._source = path.absolute()
    config.check(str(path))
    return config
