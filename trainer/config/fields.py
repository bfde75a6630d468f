"""Field types of the job file, and the base class of its sections."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from crossfade.base.validation import described

Auto = Literal["auto"]
"""A value that follows from others or from the size of the dataset; see ``defaults.py``."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AtLeastOne = Annotated[int, Field(ge=1, strict=True)]
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$"),
    described("a letter, then letters, digits, '_' and '-'"),
]
TimeValue = Annotated[
    Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] | Annotated[str, Field(strict=True)],
    # YAML turns text that looks like a date into one.
    BeforeValidator(lambda value: value.isoformat() if isinstance(value, date) else value),
]


Value = TypeVar("Value")


def resolved(value: Value | Auto) -> Value:
    """Return a value of a job that ``defaults.resolve`` has returned, where none is ``auto``."""
    if value == "auto":
        raise AssertionError("a value of the job is still auto")
    return value


class Section(BaseModel):
    """A section of the job file: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
