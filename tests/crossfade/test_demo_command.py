"""``crossfade demo`` runs every command it prints, on the real sample or on synthetic listening."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_synthetic_demo_recommends_by_genre(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "lastfm.yaml").write_text(
        "name: lastfm\ndata: {path: data/lastfm}\ntrain: {epochs: 3}\nmodel: {dim: 16}\n"
    )
    synthesize = ["synthesize", "--queries", "2000", "--items", "4000", "--interactions", "100000"]
    command = [sys.executable, "-m", "crossfade"]
    subprocess.run(
        [*command, *synthesize, "--item", "artist", "--seed", "0", "--out", "data/lastfm"], cwd=tmp_path, check=True
    )
    demo = [*command, "demo", "--no-map", "--dir", str(tmp_path)]
    result = subprocess.run(demo, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    printed = re.findall(r"^\$ crossfade (\w+)", result.stdout, re.MULTILINE)
    assert printed == ["prepare", "train", "similar", "recommend"]
    neighbors = result.stdout.partition("artist 3 (jazz)\n")[2].splitlines()[:8]
    assert sum("(jazz)" in line for line in neighbors) >= 6, neighbors


def test_failing_command_ends_the_demo(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    command = [sys.executable, "-m", "crossfade", "demo"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout.count("$ crossfade") == 1
