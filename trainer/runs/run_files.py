"""Read the JSON files of a run folder, whose content may be of anyone: a folder is copied, shared, and edited.

identity = read_run_file(path / "run.json", RunIdentity)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, RootModel, ValidationError

from crossfade.base.errors import InputError
from crossfade.base.io.regular_files import read_regular
from crossfade.base.json_text import parse_json
from crossfade.base.validation import format_validation_error

File = TypeVar("File", bound=BaseModel)
_FIX = "restore it"


class RunIdentity(BaseModel):
    """``run.json``: who the run is. Its ID is a part of the names of files."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    name: str | None = None
    started: float | None = None


class RunReport(BaseModel):
    """``report.json``: the members that are read back."""

    steps: Annotated[int, Field(ge=0)]
    epochs: Annotated[int, Field(ge=0)]
    best_epoch: int | None
    metrics: dict[str, dict[str, float]]


class RunRestarts(RootModel[list[dict[str, Any]]]):
    """``restarts.json``: an object for each restart."""


def read_run_file(path: Path, model: type[File], fix: str = _FIX) -> File:
    """Read the JSON file at ``path``; ``fix`` is what a user can do if it cannot be read.

    Raises:
        FileNotFoundError: there is none.
        InputError: it cannot be read, or is not such a file.
    """
    return parse_run_file(_read(path), str(path), model, fix)


def read_report(path: Path, fix: str = _FIX) -> dict[str, Any]:
    """Read all members of the report at ``path``, in their order; ``fix`` is what a user can do if it cannot be read.

    Raises:
        FileNotFoundError: there is none.
        InputError: it cannot be read, or is not a report.
    """
    data = _read(path)
    parse_run_file(data, str(path), RunReport, fix)
    report: dict[str, Any] = parse_json(data)
    return report


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_run_file(data: bytes, name: str, model: type[File], fix: str = _FIX) -> File:
    """Parse ``data``, the content of the file ``name``; ``fix`` is what a user can do if it cannot be parsed.

    Raises:
        InputError: it is not such a file.
    """
    if not data.strip(b"\0 \n"):
        raise InputError(f"{name}: is empty; {fix}")
    try:
        return model.model_validate(parse_json(data))
    except ValidationError as error:
        problem = format_validation_error(error)
        raise InputError(f"{name}: is not as 'crossfade train' writes it: {problem}; {fix}") from error
    except ValueError as error:
        raise InputError(f"{name}: is not as 'crossfade train' writes it: {error}; {fix}") from error
