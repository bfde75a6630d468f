"""``crossfade demo`` runs every command it prints, on the real sample or on synthetic listening."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crossfade.cli.demo import _ARTISTS

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "crossfade"]
JOB = "name: {name}\ndata: {{path: data/{name}}}\ntrain: {{epochs: 3}}\nmodel: {{dim: 16}}\n"


def demo(folder: Path, name: str, *options: str) -> str:
    """Run the demo with a short job, and return what it prints."""
    (folder / "jobs").mkdir(exist_ok=True)
    (folder / "jobs" / f"{name}.yaml").write_text(JOB.format(name=name))
    result = subprocess.run(
        [*COMMAND, "demo", "--dir", str(folder), *options], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def write_sample(folder: Path) -> None:
    """Write files as those of Last.fm, with 60 listeners of rock or of jazz, and one who listens to all."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(1)
    names = [*_ARTISTS["lastfm"], *(f"Band {number}" for number in range(75))]
    genre_of = ["jazz" if artist % 2 or names[artist] == "Miles Davis" else "rock" for artist in range(80)]
    plays, tagged = [], []
    for listener in range(61):
        genre = ("rock", "jazz")[listener % 2]
        own = [artist for artist in range(80) if listener == 60 or genre_of[artist] == genre]
        heard = draws.permutation(own)[: 80 if listener == 60 else 15 + listener % 5]
        plays += [(listener, artist, 9) for artist in heard]
        tagged += [(listener, artist, 1 + (genre_of[artist] == "jazz"), 1) for artist in heard]
        tagged += [(listener, heard[0], 3, 1)]  # one listener alone gave this tag
    tables = {
        "user_artists.dat": (["userID", "artistID", "weight"], plays),
        "artists.dat": (["id", "name"], list(enumerate(names))),
        "user_taggedartists.dat": (["userID", "artistID", "tagID", "day"], tagged),
        "tags.dat": (["tagID", "tagValue"], [(1, "rock"), (2, "jazz"), (3, "awesome")]),
    }
    for name, (head, rows) in tables.items():
        lines = ["\t".join(map(str, row)) for row in [head, *rows]]
        (folder / name).write_text("\n".join(lines) + "\n")


def printed_commands(output: str) -> list[str]:
    return re.findall(r"^\$ .*crossfade (\w+)", output, re.MULTILINE)


@pytest.mark.slow
def test_synthetic_demo_recommends_by_genre_and_is_never_called_lastfm(tmp_path: Path) -> None:
    synthesize = ["synthesize", "--queries", "2000", "--items", "4000", "--interactions", "100000"]
    prepared = [*COMMAND, *synthesize, "--item", "artist", "--out", "data/synthetic"]
    first = subprocess.run(prepared, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert first.stdout.startswith("data/synthetic: customer x artist (synthetic listening)\n")
    output = demo(tmp_path, "synthetic", "--no-map")
    assert printed_commands(output) == ["synthesize", "train", "similar", "recommend"]
    neighbors = output.partition("artist 3 (jazz)\n")[2].splitlines()[:8]
    assert sum("(jazz)" in line for line in neighbors) >= 6, neighbors
    assert "lastfm" not in output


def test_first_minutes_run_from_top_to_bottom(tmp_path: Path) -> None:
    """The page installs the package and downloads the plays first, which a test has already."""
    write_sample(tmp_path / "lastfm")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    page = (Path(__file__).parents[2] / "docs" / "first-minutes.md").read_text(encoding="utf-8")
    page = page.partition("## Python API")[0]
    blocks = re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    typed = [block for block in blocks if re.match(r"python|curl|echo|\.venv/", block)]
    lines = "".join(typed).replace(".venv/bin/crossfade train", ".venv/bin/crossfade train --set train.epochs=1")
    done = re.compile(r"python -m venv|curl|\S+pip install|\S+ -m zipfile")
    script = "\n".join(line for line in lines.splitlines() if not done.match(line))
    result = subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "customer 2\n" in result.stdout
