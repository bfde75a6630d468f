"""Files that ``crossfade plan --to`` writes, and manifests in them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from cluster_data import write_job
from command_here import crossfade_here
from running_command import succeeded

Manifests = dict[tuple[str, str], dict[str, Any]]
"""Manifests by kind and name."""


def planned_files(folder: Path, to: str, *options: object, data: Path, **sections: Any) -> tuple[Path, list[str]]:
    """Plan a job on two servers and three workers, as far as ``sections`` set nothing else.

    Return the folder with the files for the scheduler ``to``, and what the command has printed.
    """
    cluster = {"servers": 2, "workers": 3, **sections.pop("cluster", {})}
    write_job(folder / "job.yaml", data, cluster=cluster, **sections)
    planned = crossfade_here("plan", "job.yaml", "--to", to, "--out", "files", *options, cwd=folder)
    return folder / "files", succeeded(planned).stdout.splitlines()


def read_manifests(paths: Iterable[Path]) -> Manifests:
    """Return all manifests in the files at ``paths``."""
    found = [each for path in paths for each in yaml.safe_load_all(path.read_text())]
    manifests = {(each["kind"], each["metadata"]["name"]): each for each in found}
    assert len(manifests) == len(found)
    return manifests
