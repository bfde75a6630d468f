"""``crossfade demo``: the whole way from listening events to recommendations, on a sample, command by command."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from crossfade.options.command import add_command
from crossfade.terminal import print_line

_EXAMPLES = (
    ("crossfade demo", "Train on Last.fm in this folder, and print what it recommends."),
    ("crossfade demo --dir /tmp/demo --no-map", "Do so in another folder, and leave out the map."),
)
_NOTES = """\
The data are prepared in data/lastfm, unless they are there already, and the run is runs/lastfm, whose earlier content
is deleted. The job is jobs/lastfm.yaml, which is written if there is none. Each command is printed before it runs.

Last.fm HetRec 2011 has 1,892 listeners and 17,632 artists. If it can be neither found nor downloaded, synthetic
listening takes its place; its artists are called 'artist 3 (jazz)' and so on.
"""
_DATA, _JOB, _RUN = Path("data/lastfm"), Path("jobs/lastfm.yaml"), Path("runs/lastfm")
_JOB_TEXT = f"""\
# Artists that customers listen to. All other keys have their defaults: crossfade train --explain
name: {_RUN.name}
data: {{path: {_DATA}}}
"""
_ARTISTS = ("Radiohead", "Metallica", "Britney Spears", "Miles Davis", "Daft Punk")
_SYNTHETIC_ARTISTS = ("artist 3 (jazz)", "artist 4 (metal)", "artist 34 (techno)")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "demo",
        "try everything on a sample",
        "Prepare a sample, train on it, print similar artists and recommendations, and draw a map: a few minutes.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--dir", type=Path, default=Path(), metavar="DIR", help="work in this folder (default: the current one)"
    )
    group.add_argument("--no-map", action="store_true", help="draw no map of the artists")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run each command; the first one that fails ends the demo with its exit code."""
    from crossfade.kvstore.io.folder import Folder
    from crossfade.trainer.data.manifest import read_manifest
    from crossfade.trainer.prepare.lastfm import is_synthetic

    folder: Path = arguments.dir
    (folder / _JOB).parent.mkdir(parents=True, exist_ok=True)
    if code := _call(folder, "prepare", "--sample", "lastfm", "--out", str(_DATA), "--skip-existing"):
        return code
    if not (folder / _JOB).exists():
        (folder / _JOB).write_text(_JOB_TEXT, encoding="utf-8")
    manifest = read_manifest(Folder(folder / _DATA))
    customer = "1000001" if is_synthetic(manifest) else "2"
    steps = [
        ("train", str(_JOB), "--run-dir", str(_RUN), "--overwrite"),
        ("similar", str(_RUN), *(_SYNTHETIC_ARTISTS if is_synthetic(manifest) else _ARTISTS)),
        ("recommend", str(_RUN), "--customer", customer),
    ]
    can_draw = find_spec("matplotlib") is not None and find_spec("openTSNE") is not None
    steps += [("map", str(_RUN))] if can_draw and not arguments.no_map else []
    for step in steps:
        if code := _call(folder, *step):
            return code
    if not can_draw and not arguments.no_map:
        print_line()
        print_line(f"for a map of the artists: pip install 'crossfade[map]', then: crossfade map {_RUN}")
    return 0


def _call(folder: Path, *words: str) -> int:
    """Print and run ``crossfade`` with ``words`` in ``folder``; return its exit code."""
    print_line()
    print_line(f"$ crossfade {shlex.join(words)}", flush=True)
    command = [sys.executable, "-P", "-m", "crossfade", *words]
    return subprocess.run(command, cwd=folder, check=False).returncode  # noqa: S603 - our own command
