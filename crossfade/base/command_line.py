"""Write command lines that can be typed in the shell that ran this command.

print(f"next: {command_line('train', 'jobs/plays.yaml', resume=True)}")
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def command_line(*words: object, **options: object) -> str:
    """Return the command line of ``crossfade`` with ``words``, which begins with ``program``.

    An option that is True is typed without a value; one with a tuple is typed once for each value.
    """
    typed = [*map(str, words)]
    for name, given in options.items():
        for value in given if isinstance(given, tuple) else (given,):
            typed += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join([*program(), *typed])


def program() -> list[str]:
    """Return the words that start this installation from any folder: ``crossfade`` if PATH finds it, else its script.

    A process that another program started, such as a notebook, has the script beside its Python.
    """
    called, python = Path(sys.argv[0]), sys.executable or "python"
    script = called if called.name == "crossfade" else Path(python).with_name("crossfade")
    if (called.parent.name, called.name) == ("crossfade", "__main__.py") or not script.is_file():
        return [python, "-m", "crossfade"]
    found = shutil.which("crossfade")
    return ["crossfade" if found is not None and script.samefile(found) else str(script.parent.resolve() / script.name)]
