"""Options of ``crossfade plan --to``, which writes the files that run a job under Slurm or Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from crossfade.base.options import Options, option

ONLY: dict[str, tuple[str, ...]] = {
    "slurm": ("partition", "time", "run_dir"),
    "kubernetes": ("image", "namespace", "service_account", "secret", "claim", "storage"),
}
"""The options that belong to one scheduler."""


def _matching(pattern: str, expected: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}")
        return value

    return check


_Time = Annotated[
    str,
    BeforeValidator(_matching(r"(\d+-)?\d+(:\d+){0,2}", "a time limit of Slurm such as 4:00:00 or 1-12:00:00")),
]
_Label = Annotated[
    str,
    BeforeValidator(_matching(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "lower-case letters, digits and hyphens")),
]
_Quantity = Annotated[
    str,
    BeforeValidator(_matching(r"[1-9]\d*(Mi|Gi|Ti)", "a size such as 500Mi, 20Gi or 1Ti")),
]


class SchedulerFiles(Options):
    """Which files are written for a scheduler, and what the job runs with there."""

    to: Literal["slurm", "kubernetes"] | None = option(
        None, "write files that run the job there, sized by the plan, instead of the plan", group="schedulers"
    )
    out: Path | None = option(
        None, "write the files to FOLDER (required with a scheduler)", group="schedulers", value="FOLDER"
    )
    data: str | None = option(
        None,
        "read the dataset from this path or s3:// address there (default: data.path)",
        group="schedulers",
        value="PATH",
    )
    partition: str | None = option(
        None, "submit to this partition (default: the default one of the cluster)", group="Slurm", value="NAME"
    )
    time: _Time = option("1-00:00:00", "set the time limit, [DAYS-]HOURS:MINUTES:SECONDS", group="Slurm", value="LIMIT")
    run_dir: Path | None = option(
        None, "use DIR, which all nodes share, as run folder (default: runs/NAME)", group="Slurm", value="DIR"
    )
    image: str | None = option(
        None,
        "run this container image (default: crossfade:VARIANT, by engine and device)",
        group="Kubernetes",
        value="IMAGE",
    )
    namespace: _Label | None = option(
        None, "create everything in this namespace (default: the context's)", group="Kubernetes", value="NAME"
    )
    service_account: _Label | None = option(
        None, "run as this service account (default: create one for the job)", group="Kubernetes", value="NAME"
    )
    secret: _Label | None = option(
        None, "set the keys of this secret, such as AWS_REGION, as variables", group="Kubernetes", value="NAME"
    )
    claim: _Label | None = option(
        None, "mount this volume claim at /runs (default: create one)", group="Kubernetes", value="NAME"
    )
    storage: _Quantity = option(
        "20Gi", "request so much for the claim that is created", group="Kubernetes", value="SIZE"
    )
