"""Suggest what to run next: command lines that train on a dataset, or use a model.

print(f"next: {train_command('data/plays', 'customer', 'track')}")
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.base.command_line import command_line
from crossfade.base.io.folder import Folder
from crossfade.terminal import print_line, print_lines

if TYPE_CHECKING:
    from crossfade.trainer.data.manifest import DatasetManifest

_FIRST_ROWS, _NEAR_ROWS = 1000, 50


def print_prepared(manifest: DatasetManifest | None, out: str) -> None:
    """Print a summary of the dataset at ``out``, and the command to run next; None: it was there already."""
    from crossfade.trainer.prepare.summary import format_summary

    if manifest is None:
        print_line(f"{out}: exists already; nothing to do")
        return
    print_lines(format_summary(manifest, Folder(out)).splitlines())
    print_line(f"next: {train_command(out, manifest.query, manifest.item)}")


def train_command(data: str, query: str, item: str) -> str:
    """Return a command line that trains on the dataset ``data`` of these entities.

    It uses the job file with the name of the dataset or, if there is none, writes one, with the defaults of all keys.
    """
    folder = Folder(data)
    job = Path("jobs") / f"{folder.name}.yaml"
    if (settings := _settings(job, folder, query, item)) is not None:
        return command_line("train", job, set=tuple(settings))
    name = _run_name(folder)
    job = next(path for path in _file_names(name) if not path.exists())
    text = yaml_text({"name": name, "data": {"path": data}})
    return f"echo {shlex.quote(text)} > {shlex.quote(str(job))} && {command_line('train', job)}"


def use_commands(run: Path, data: Folder, manifest: DatasetManifest) -> list[str]:
    """Return command lines that use the model of ``run``: of a frequent item, and of a median customer.

    ``data`` is the dataset of the run.
    """
    item, query = _frequent_id(data, manifest, manifest.item), median_id(data, manifest, manifest.query)
    commands = [] if item is None else [command_line("similar", run, item)]
    return commands if query is None else [*commands, command_line("recommend", run, customer=query)]


def _frequent_id(data: Folder, manifest: DatasetManifest, entity: str) -> str | None:
    """Return the most frequent of the first IDs of ``entity``; None if none can be typed as a value of an option."""
    from crossfade.trainer.data.vocabulary import Vocabulary

    vocabulary = Vocabulary(data, manifest, entity)
    first = vocabulary.read(0, min(vocabulary.rows, _FIRST_ROWS), ["id", "count"]).to_pylist()
    counts = {str(row["id"]): row["count"] for row in first if row["count"]}
    return max(filter(_can_be_typed, counts), key=counts.__getitem__, default=None)


def median_id(data: Folder, manifest: DatasetManifest, entity: str) -> str | None:
    """Return an ID of ``entity`` with a median number of interactions; None if none near it can be typed.

    The most frequent one is a poor example: who has most of what is popular can only be recommended the rest.
    """
    import numpy as np

    from crossfade.trainer.data.vocabulary import Vocabulary

    vocabulary = Vocabulary(data, manifest, entity)
    counts_R = vocabulary.counts()
    sorted_R = np.argsort(counts_R, kind="stable")[np.count_nonzero(counts_R == 0) :]
    middle = len(sorted_R) // 2
    near = sorted_R[max(0, middle - _NEAR_ROWS) : middle + _NEAR_ROWS]
    ids = dict(zip(np.sort(near).tolist(), vocabulary.take(np.sort(near), ["id"])["id"].to_pylist(), strict=True))
    from_middle = sorted(range(len(near)), key=lambda place: abs(place - min(middle, _NEAR_ROWS)))
    return next(filter(_can_be_typed, (str(ids[int(near[place])]) for place in from_middle)), None)


def _can_be_typed(id: str) -> bool:
    return id.isprintable() and not id.startswith("-")


def _settings(job: Path, data: Folder, query: str, item: str) -> list[str] | None:
    """Return what to change in the job file ``job`` to train on ``data``; None if there is no such job."""
    from crossfade.base.errors import InputError
    from crossfade.trainer.config.loading import load_job

    try:
        found = load_job(job)
    except InputError:
        return None
    wanted = {"data.path": data.uri, "data.query": query, "data.item": item}
    current = {"data.path": Folder(found.data.path).uri}
    # A job that names no entities takes those of the dataset.
    current |= {"data.query": found.data.query or query, "data.item": found.data.item or item}
    return [f"{key}={yaml_text(value)}" for key, value in wanted.items() if value != current[key]]


def _run_name(data: Folder) -> str:
    """Return the name of the dataset as one of a job: a letter, then letters, digits, '_' and '-'."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", data.name).strip("-")
    return name if name[:1].isalpha() else f"run-{name}".strip("-")


def _file_names(name: str) -> Iterator[Path]:
    yield Path(f"{name}.yaml")
    number = 2
    while True:
        yield Path(f"{name}-{number}.yaml")
        number += 1


def yaml_text(value: Any) -> str:
    """Return ``value`` as YAML in one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=sys.maxsize)
    return text.removesuffix("\n").removesuffix("\n...")
