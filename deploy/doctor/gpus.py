"""Check the GPUs of a host: which engine can drive each, and whether the job's ``train.device`` can be used."""

from __future__ import annotations

from collections.abc import Iterator

from crossfade.base.errors import CrossfadeError
from crossfade.deploy.doctor.findings import Finding
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.engines.cuda_driver import find_gpus
from crossfade.trainer.model.engines.engine import choose_engine, drivers


def check_gpus(job: JobConfig | None) -> Iterator[Finding]:
    """Check the driver and each GPU; with ``job``, also what its first worker would compute on."""
    state = find_gpus()
    if state.problem:
        yield Finding("gpu", "warning", state.problem)
    elif not state.gpus:
        yield Finding("gpu", "ok", "none is found, so training computes on the CPU")
    for gpu in state.gpus:
        engines, reason = drivers(gpu)
        if engines:
            yield Finding("gpu", "ok", f"{gpu} can be used by engine {' and '.join(engines)}")
        else:
            yield Finding("gpu", "warning", f"{gpu} cannot be used: {reason}")
    if job is None:
        return
    try:
        choice = choose_engine(job.train)
    except CrossfadeError as error:
        yield Finding("gpu", "fix", str(error))
    else:
        yield Finding("gpu", "ok", f"the job would compute on {', '.join(choice.devices)} with engine {choice.engine}")
