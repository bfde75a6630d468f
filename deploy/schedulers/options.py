"""Options of ``crossfade plan`` for a scheduler: it writes the files that run a job there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from crossfade.base.errors import Option, OptionError
from crossfade.base.options import Integer, alternatives, option
from crossfade.trainer.config.options import ClusterSizes, JobOptions

ONLY = {"slurm": ("run_dir",), "kubernetes": ("image", "secret", "claim")}
"""The options that belong to one scheduler."""


_schedulers = partial(option, group="schedulers")
_slurm = partial(option, group="Slurm")
_kubernetes = partial(option, group="Kubernetes")


class PlanOptions(JobOptions, ClusterSizes):
    """What is planned, and for which scheduler files are written instead of the plan."""

    to: Literal["slurm", "kubernetes"] | None = _schedulers(
        None, "write files that run the job there, sized by the plan, instead of the plan"
    )
    cores: Integer | None = _schedulers(
        None, "request N CPUs for each host that trains (default: by its roles)", value="N", ge=1
    )
    out: Path | None = _schedulers(None, "write the files to FOLDER (required with a scheduler)", value="FOLDER")
    data: str | None = _schedulers(
        None, "read the dataset from this path or s3:// address there (default: data.path)", value="PATH"
    )
    run_dir: Path | None = _slurm(
        None, "use DIR, which all nodes share, as run folder (default: runs/NAME)", value="DIR"
    )
    image: str | None = _kubernetes(
        None, "run this container image (default: crossfade:VARIANT, by engine and device)", value="IMAGE"
    )
    secret: str | None = _kubernetes(
        None, "set the keys of this secret, such as AWS_REGION, as variables", value="NAME"
    )
    claim: str | None = _kubernetes(None, "mount this volume claim at /runs (default: create one)", value="NAME")

    @model_validator(mode="after")
    def _check_scheduler(self) -> Self:
        given = [name for name in self.model_fields_set if getattr(self, name) not in (None, False)]
        some = sorted({name for names in ONLY.values() for name in names})
        if self.to is None:
            for name in ("out", "data", "cores", *some):
                if name in given:
                    fitting = [each for each in ONLY if name in ONLY[each]] or list(ONLY)
                    fix = ("add ", alternatives(Option("to", each) for each in fitting))
                    raise OptionError(name, problem="is for the files of a scheduler", fix=fix)
            return self
        if self.out is None:
            problem = ("name the folder of the files, as in ", Option("out", self.to))
            raise OptionError("to", found=self.to, problem=problem)
        others = [name for name in some if name not in ONLY[self.to]]
        if self.to == "kubernetes":
            others.append("hosts")
        for name in (*others, "json_"):
            if name in given:
                problem = ("has no meaning with ", Option("to", self.to))
                raise OptionError(name, problem=problem, fix="leave one of them out")
        return self
