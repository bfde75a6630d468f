"""``crossfade prepare``: options, the printed summary and the next command."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_here import crossfade_here
from preparing import interactions, write_text
from running_command import messages

from crossfade.cli.main import make_parser

pytestmark = pytest.mark.slow


def parse(words: Sequence[str | Path]) -> argparse.Namespace:
    return make_parser().parse_args(list(map(str, words)))


def test_command_prints_summary_and_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "a b.csv", "uid,song,did,at\n1,5,play,1\n1,6,like,2\n1,7,skip,3\n2,5,play,4\n2,6,play,5\n")
    write_text(tmp_path / "songs.csv", 'song,title\n5,"Five, live"\n')
    words = "--query=customer=uid --item=track=song --event did --event-weights play=1,like=3,skip=0 --timestamp at"
    words += " --hold-out-test last-1 --hold-out-valid none --names track=songs.csv:song:title --threads 1"
    words += " --memory 0.5 --out data/x"
    arguments = parse(["prepare", "--events", "a b.csv", *words.split()])
    assert arguments.run(arguments) == 0
    assert sorted(interactions(Path("data/x"), "train")) == [(1, 5, 1.0, 1), (2, 5, 1.0, 4)]
    assert sorted(interactions(Path("data/x"), "test")) == [(1, 6, 3.0, 2), (2, 6, 1.0, 5)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data/x: customer x track"
    assert any("'Five, live' (2)" in line for line in lines)
    assert lines[-1] == "next: echo '{name: x, data: {path: data/x}}' > x.yaml && crossfade train x.yaml"


def test_odd_inputs_are_warned_about(tmp_path: Path) -> None:
    write_text(tmp_path / "e.csv", "user,song\n" + "".join(f"{n},{n % 5}\n" for n in range(40)))
    write_text(tmp_path / "valid.csv", "user,song\n1,1\n2,2\n3,3\n")
    words = ("prepare", "--events", "e.csv", "--query", "customer=user")
    same = crossfade_here(*words, "--item", "user", "--out", "same", cwd=tmp_path)
    assert same.returncode == 0
    assert "are both in the column 'user'" in same.stderr
    few = crossfade_here(*words, "--item", "track=song", "--valid", "valid.csv", "--out", "few", cwd=tmp_path)
    assert few.returncode == 0
    assert messages(few.stderr) == [
        "crossfade: valid: has 3 interactions, so that a metric on it is mostly chance; hold out at least 100"
    ]
