"""Follow a folder to the run that it holds at present, such as the published version of a service.

current_run("services/music")       # RunLocation("services/music/version-000012", "…/version-000012-data", 12)
current_run("runs/lastfm")          # RunLocation("runs/lastfm")
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.base.json_text import validate_json

CURRENT_FILE = "current.json"


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class CurrentRun(BaseModel):
    """``current.json``: the version that is served, and the folders of its run and its dataset beside the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[int, Field(ge=1)]
    run: _Name
    data: _Name | None = None


class RunLocation(NamedTuple):
    """The place of a run, its dataset (None: the one of its job), and its version (None: the run is of no service)."""

    run: str
    data: str | None = None
    version: int | None = None


def current_run(location: str) -> RunLocation:
    """Return the run that the folder at ``location`` names as its current one, or ``location`` if it names none.

    Raises:
        InputError: the file that names it is damaged.
    """
    folder = Folder(location)
    if folder.path is not None and not folder.path.is_dir():
        return RunLocation(location)
    try:
        found = validate_json(CurrentRun, folder.read(CURRENT_FILE))
    except FileNotFoundError:
        return RunLocation(location)
    except ValueError as error:
        raise InputError(f"{folder.uri}/{CURRENT_FILE}: does not name a run: {error}; restore it") from error
    data = None if found.data is None else folder.child(found.data).uri
    return RunLocation(folder.child(found.run).uri, data, found.version)
