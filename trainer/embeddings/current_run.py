"""Follow a folder to the run that it holds at present, such as the published version of a service.

location = current_run("services/music")            # services/music/version-000012
location = current_run("runs/lastfm")               # itself
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.base.json_text import validate_json

CURRENT_FILE = "current.json"


class CurrentRun(BaseModel):
    """``current.json``: the version that is served, and the folder of its run beside the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[int, Field(ge=1)]
    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


def current_run(location: str) -> str:
    """Return the run that the folder at ``location`` names as its current one, or ``location`` if it names none.

    Raises:
        InputError: the file that names it is damaged.
    """
    folder = Folder(location)
    if folder.path is not None and not folder.path.is_dir():
        return location
    try:
        data = folder.read(CURRENT_FILE)
    except FileNotFoundError:
        return location
    try:
        return folder.child(validate_json(CurrentRun, data).run).uri
    except ValueError as error:
        raise InputError(f"{folder.uri}/{CURRENT_FILE}: does not name a run: {error}; restore it") from error
