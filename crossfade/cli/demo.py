"""``crossfade demo``: the whole way from listening events to recommendations, on a sample, command by command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from crossfade.base.command_line import command_line, program
from crossfade.base.options import Options, option
from crossfade.cli.command import as_command
from crossfade.cli.next_command import typical_id, yaml_text
from crossfade.terminal import print_line

_EXAMPLES = (
    ("crossfade demo", "Train on Last.fm in this folder, and print what it recommends."),
    ("crossfade demo --dir /tmp/demo --no-map", "Do so in another folder, and leave out the map."),
)
_NOTES = """\
Each command is printed before it runs. The data are prepared in data/lastfm, unless they are there already, the job is
jobs/lastfm.yaml, and the run is runs/lastfm, whose earlier content is deleted. If Last.fm can be neither found nor
downloaded, synthetic listening takes its place, in data/synthetic and runs/synthetic.
"""
_REAL, _SYNTHETIC = "lastfm", "synthetic"
_JOB_TEXT = """\
# Artists that customers listen to. All other keys have their defaults: crossfade train --explain
name: {name}
data: {{path: data/{name}}}
"""
_PREPARE = {
    _REAL: ("prepare", "--sample", "lastfm"),
    _SYNTHETIC: ("synthesize", "--queries", "2000", "--items", "4000", "--interactions", "100000", "--item", "artist"),
}
_ARTISTS = {
    _REAL: ("Radiohead", "Metallica", "Britney Spears", "Miles Davis", "Daft Punk"),
    _SYNTHETIC: ("artist 3 (jazz)", "artist 4 (metal)", "artist 34 (techno)"),
}


class DemoOptions(Options):
    """Where the demo works, and what it leaves out."""

    dir: Path = option(Path(), "work in this folder (default: the current one)", group="output", value="DIR")
    no_map: bool = option(False, "draw no map of the artists", group="output")


@as_command(
    "demo",
    "Prepare a sample, train on it, print similar artists and recommendations, and draw a map: a few minutes.",
    _EXAMPLES,
    _NOTES,
)
def run(options: DemoOptions) -> int:
    """Run each command; the first one that fails ends the demo with its exit code."""
    from crossfade.base.io.folder import Folder
    from crossfade.trainer.data.manifest import read_manifest

    folder = options.dir
    name = _choose_sample(folder)
    data, job, run = folder / "data" / name, folder / "jobs" / f"{name}.yaml", folder / "runs" / name
    if code := _call(*_PREPARE[name], "--out", data, "--skip-existing"):
        return code
    if not job.exists():
        job.parent.mkdir(parents=True, exist_ok=True)
        job.write_text(_JOB_TEXT.format(name=name), encoding="utf-8")
    manifest = read_manifest(Folder(data))
    customer = typical_id(Folder(data), manifest, manifest.query, 0.5)
    # The job works in its folder; from here, the path of its data is another.
    place = () if folder == Path() else ("--set", f"data.path={yaml_text(str(data))}")
    steps: list[Sequence[object]] = [
        ("train", job, "--run-dir", run, "--overwrite", *place),
        ("similar", run, *_ARTISTS[name]),
        ("recommend", run, "--customer", customer),
    ]
    can_draw = find_spec("openTSNE") is not None
    steps += [("map", run)] if can_draw and not options.no_map else []
    for step in steps:
        if code := _call(*step):
            return code
    if not can_draw and not options.no_map:
        print_line()
        print_line(f"for a map of the artists: pip install 'crossfade[map]', then: {command_line('map', run)}")
    return 0


def _choose_sample(folder: Path) -> str:
    """Choose Last.fm or, if it cannot be had, synthetic listening.

    Data that are there are used: a download that failed is not tried again each time.
    """
    from crossfade.base.io.folder import Folder
    from crossfade.trainer.prepare.lastfm import locate_lastfm
    from crossfade.trainer.prepare.staging import read_complete

    for name in (_REAL, _SYNTHETIC):
        if read_complete(Folder(folder / "data" / name)) is not None:
            return name
    found = locate_lastfm(folder / "data", lambda line: print_line(line, file=sys.stderr))
    return _SYNTHETIC if found is None else _REAL


def _call(*words: object) -> int:
    """Print and run ``crossfade`` with ``words``; return its exit code."""
    print_line()
    print_line(f"$ {command_line(*words)}", flush=True)
    return subprocess.run([*program(), *map(str, words)], check=False).returncode  # noqa: S603 - our own command
