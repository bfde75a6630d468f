"""``crossfade rollback``: publish an earlier version of a service again."""

from __future__ import annotations

from contextlib import closing

from crossfade.cli.command import as_command
from crossfade.deploy.refresh.options import RollbackOptions
from crossfade.terminal import print_line

_EXAMPLES = (
    ("crossfade rollback music.yaml", "Return to the version before the one that is served."),
    ("crossfade rollback music.yaml --to 41", "Return to version 41, and withdraw all later ones."),
)
_NOTES = """\
Servers of the folder of the service follow within their --refresh seconds. The events of withdrawn versions count as
not taken: the next file of events takes them again, so delete or correct those that were bad first.
"""


@as_command("rollback", "Publish an earlier version of a service again.", _EXAMPLES, _NOTES)
def run(options: RollbackOptions) -> int:
    """Withdraw the versions after the one to return to.

    Raises:
        InputError: there is no such version, or another process changes the service.
    """
    from crossfade.deploy.refresh.increment import RefreshedService
    from crossfade.deploy.refresh.service_file import load_service

    with closing(RefreshedService(load_service(options.service))) as service:
        withdrawn = service.roll_back(options.to)
        current = service.versions.current
    names = ", ".join(map(str, sorted(withdrawn))) or "none"
    print_line(f"withdrawn: {names}; version {current.number if current else 'none'} is served")
    if withdrawn:
        print_line("the next new file takes the withdrawn events again: first correct or delete files that were bad")
    return 0
