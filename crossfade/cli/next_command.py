"""Suggest what to run next: command lines that train on a dataset, or use a model.

print(f"next: {train_command('data/plays')}")
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.base.command_line import command_line
from crossfade.base.io.folder import Folder
from crossfade.terminal import print_line, print_lines

if TYPE_CHECKING:
    from crossfade.trainer.data.manifest import DatasetManifest


def print_prepared(manifest: DatasetManifest | None, out: str) -> None:
    """Print a summary of the dataset at ``out``, and the command to run next; None: it was there already."""
    from crossfade.trainer.prepare.summary import format_summary

    if manifest is None:
        print_line(f"{out}: exists already; nothing to do")
        return
    print_lines(format_summary(manifest, Folder(out)).splitlines())
    print_line(f"next: {train_command(out)}")


def train_command(data: str) -> str:
    """Return a command line that trains on the dataset ``data``: by the job file with its name, or one that it writes.

    The file that it writes has the defaults of all keys.
    """
    folder = Folder(data)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name).strip("-")
    name = name if name[:1].isalpha() else f"run-{name}".strip("-")  # as names of jobs begin with a letter
    written = Path(f"{name}.yaml")
    for job in (Path("jobs") / f"{folder.name}.yaml", written):
        if job.exists():
            return command_line("train", job, set=f"data.path={yaml_text(data)}")
    text = yaml_text({"name": name, "data": {"path": data}})
    return f"echo {shlex.quote(text)} > {written} && {command_line('train', written)}"


def use_commands(run: Path, data: Folder, manifest: DatasetManifest) -> list[str]:
    """Return command lines that use the model of ``run``, which was trained on the dataset in ``data``.

    The most frequent customer is a poor example: who has most of what is popular can only be recommended the rest.
    """
    return [
        command_line("similar", run, typical_id(data, manifest, manifest.item, 1.0)),
        command_line("recommend", run, customer=typical_id(data, manifest, manifest.query, 0.5)),
    ]


def typical_id(data: Folder, manifest: DatasetManifest, entity: str, quantile: float) -> str:
    """Return the ID of ``entity`` whose number of interactions in train is at ``quantile`` of those that have any."""
    import numpy as np

    from crossfade.trainer.data.vocabulary import Vocabulary

    vocabulary = Vocabulary(data, manifest, entity)
    counts_R = vocabulary.counts()
    sorted_R = np.argsort(counts_R, kind="stable")[np.count_nonzero(counts_R == 0) :]
    row = sorted_R[min(int(quantile * len(sorted_R)), len(sorted_R) - 1)]
    return str(vocabulary.take(np.array([row]), ["id"])["id"][0].as_py())


def yaml_text(value: Any) -> str:
    """Return ``value`` as YAML in one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=sys.maxsize)
    return text.removesuffix("\n").removesuffix("\n...")
