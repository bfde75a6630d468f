"""Options of ``crossfade dashboard``, and the folders of runs and services that it and ``crossfade status`` show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.errors import InputError, command
from crossfade.base.options import Options, Port, option
from crossfade.deploy.access import AccessOptions

if TYPE_CHECKING:
    from crossfade.deploy.dashboard.run_reader import Runs

RUNS, SERVICES = Path("runs"), Path("services")
"""Where 'crossfade train' and 'crossfade refresh' write by default."""
DEFAULT_PORT = 8050
TOKEN_VARIABLE = "CROSSFADE_DASHBOARD_TOKEN"  # noqa: S105 - the name of a variable


class RunsOptions(Options):
    """Which runs are shown."""

    runs: tuple[Path, ...] = option(
        (),
        "show this run or service, by its folder or the file of the service, or all in this folder, at most two levels "
        "deep (default: runs, and services)",
        group="runs",
        value="RUN",
        positional=True,
    )

    def open_runs(self) -> Runs:
        """Open the runs, by default the runs in the folder ``runs`` and the services in the folder ``services``.

        Raises:
            InputError: a path is not a folder.
        """
        from crossfade.deploy.dashboard.run_reader import Runs
        from crossfade.deploy.refresh.service_file import service_folder
        from crossfade.trainer.runs.run_folder import similar_run

        if not self.runs and SERVICES.is_dir():
            return Runs((RUNS,), SERVICES)
        paths = tuple(Path(service_folder(str(path))) for path in self.runs or (RUNS,))
        for path in paths:
            if not path.is_dir():
                expected = f"expected a folder that {command('train')} wrote, or one that holds such"
                near = similar_run(path)
                name_one = "" if near or self.runs else ": name one"
                raise InputError(f"{path}: is not there{near or f'; {expected}'}{name_one}")
        return Runs(paths)

    def source(self) -> str:
        """Name the folders that are shown."""
        if self.runs:
            return ", ".join(map(str, self.runs))
        return f"{RUNS}, {SERVICES}" if SERVICES.is_dir() else str(RUNS)


class DashboardOptions(AccessOptions, RunsOptions):
    """Which runs the page shows, and who may see it."""

    token_variable = TOKEN_VARIABLE

    port: Port = option(DEFAULT_PORT, "listen on this port; 0: a free one", group="server", value="N")
