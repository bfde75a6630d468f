"""``crossfade demo``: the whole way from listening events to recommendations, on a sample, command by command."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from crossfade.base.command_line import command_line, program
from crossfade.base.options import Options, option
from crossfade.cli.command import as_command
from crossfade.cli.next_command import median_id, yaml_text
from crossfade.terminal import print_line

_EXAMPLES = (
    ("crossfade demo", "Train on Last.fm in this folder, and print what it recommends."),
    ("crossfade demo --dir /tmp/demo --no-map", "Do so in another folder, and leave out the map."),
)
_NOTES = """\
The data are prepared in data/lastfm, unless they are there already, and the run is runs/lastfm, whose earlier content
is deleted. The job is jobs/lastfm.yaml, which is written if there is none. Each command is printed before it runs.

Last.fm HetRec 2011 has 1,892 listeners and 17,632 artists; data/lastfm_genres.csv gets the tag of each artist that most
listeners gave it. If it can be neither found nor downloaded, synthetic listening takes its place, in data/synthetic and
runs/synthetic; its artists are called 'artist 3 (jazz)' and so on.
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
    from crossfade.trainer.prepare.lastfm import write_genres

    folder = options.dir
    name, existing, raw = _choose_sample(folder)
    data, job, run = folder / "data" / name, folder / "jobs" / f"{name}.yaml", folder / "runs" / name
    job.parent.mkdir(parents=True, exist_ok=True)
    if code := _call(*_PREPARE[name], "--out", data, existing):
        return code
    if not job.exists():
        job.write_text(_JOB_TEXT.format(name=name), encoding="utf-8")
    manifest = read_manifest(Folder(data))
    if raw is not None:
        write_genres(raw, Folder(data), manifest, _genres(folder))
    customer = median_id(Folder(data), manifest, manifest.query)
    assert customer is not None, "a sample has customers"
    # Names of synthetic artists have their genres.
    shown = ("--metadata", _genres(folder), "--show", "genre") if name == _REAL and _genres(folder).exists() else ()
    # The job works in its folder; from here, the path of its data is another.
    place = () if folder == Path() else ("--set", f"data.path={yaml_text(str(data))}")
    steps: list[Sequence[object]] = [
        ("train", job, "--run-dir", run, "--overwrite", *place),
        ("similar", run, *_ARTISTS[name]),
        ("recommend", run, "--customer", customer, *shown),
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


class _Sample(NamedTuple):
    """What to try things on: its name, the option for data that are there, and the folder of Last.fm's files."""

    name: str
    existing: str = "--skip-existing"
    raw: Path | None = None
    """None unless they were looked for and found."""


def _choose_sample(folder: Path) -> _Sample:
    """Choose Last.fm or, if it cannot be had, synthetic listening.

    Data that are there are used: a download that failed is not tried again each time.
    """
    from crossfade.base.io.folder import Folder
    from crossfade.display import progress_bars
    from crossfade.trainer.prepare.lastfm import locate_lastfm
    from crossfade.trainer.prepare.staging import read_complete
    from crossfade.trainer.prepare.summary import is_synthetic

    data = folder / "data"
    found, synthetic = (read_complete(Folder(data / name)) for name in (_REAL, _SYNTHETIC))
    is_there = found is not None and not is_synthetic(found)
    if synthetic is not None and not is_there:
        return _Sample(_SYNTHETIC)
    if is_there and _genres(folder).exists():
        return _Sample(_REAL)
    with progress_bars() as bars:
        raw = locate_lastfm(data, bars)
    if is_there or raw is None:
        return _Sample(_REAL if is_there else _SYNTHETIC, raw=raw)
    return _Sample(_REAL, "--skip-existing" if found is None else "--overwrite", raw)


def _genres(folder: Path) -> Path:
    return folder / "data" / f"{_REAL}_genres.csv"


def _call(*words: object) -> int:
    """Print and run ``crossfade`` with ``words``; return its exit code."""
    print_line()
    print_line(f"$ {command_line(*words)}", flush=True)
    return subprocess.run([*program(), *map(str, words)], check=False).returncode  # noqa: S603 - our own command
