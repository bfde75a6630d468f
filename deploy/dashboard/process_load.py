"""The load that a process reports, as the dashboard reads it: checked once, since files of a run may be of anyone."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

from crossfade.trainer.runs.events import Seconds, Whole


class _Updates(BaseModel):
    """What updates a table had: rows, and seconds."""

    updated: Whole
    seconds: Seconds


class _Load(BaseModel):
    """The figures that are shown; further ones are ignored."""

    pid: Whole
    resident_bytes: Whole
    cpu_seconds: Seconds
    memory_limit_bytes: Whole | None = None
    memory_available_bytes: Whole | None = None
    held_bytes: dict[str, dict[str, Whole]] = {}
    updates: dict[str, _Updates] = {}
    phase_seconds: dict[str, Seconds] = {}
    examples: Whole = 0
    steps: Whole = 0


def check_load(load: dict[str, Any]) -> dict[str, Any]:
    """Return ``load``, which may be empty: its process has not reported yet.

    Raises:
        ValueError: a figure is missing, not a number, or not finite.
    """
    if load:
        _Load.model_validate(load, strict=True)
    return load


Load = Annotated[dict[str, Any], AfterValidator(check_load)]
