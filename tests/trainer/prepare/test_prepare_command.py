"""``crossfade prepare``: options, the printed summary and the next command."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_here import crossfade_here
from preparing import (
    entries,
    interactions,
    write_text,
)
from running_command import messages

from crossfade.base.errors import InputError
from crossfade.cli.main import make_parser


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


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["prepare", "--train", "a.csv", "--sample", "lastfm"], ["--events", "--sample", "found both"]),
        (["prepare"], ["--events", "--sample", "found neither"]),
        (["prepare", "--train", "a.csv", "--event-weights", "play"], ["'play'", "EVENT=NUMBER"]),
        (["prepare", "--train", "a.csv", "--on-bad-line", "ignore"], ["--on-bad-line ignore", "quarantine=FILE"]),
        (["prepare", "--train", "a.csv", "--on-bad-line", "quarantine="], ["expected fail, skip or quarantine=FILE"]),
        (["prepare", "--sample", "lastfm", "--on-missing", "drop"], ["--on-missing", "--sample"]),
        (["prepare", "--train", "a.csv", "--names", "x=y:z"], ["ENTITY=FILE:ID_COLUMN:NAME_COLUMN"]),
        (["prepare", "--sample", "lastfm", "--hold-out", "random:0.1"], ["--hold-out", "--sample"]),
        (["prepare", "--train", "a.csv", "--memory", "-1"], ["--memory", "GiB"]),
        (["prepare", "--train", "a.csv", "--skip-existing"], ["--skip-existing", "--sample"]),
        (["synthesize", "--queries", "many"], ["--queries many", "number"]),
        (["synthesize", "--queries", "1.5"], ["--queries 1.5", "expected an integer"]),
        (["synthesize", "--valid", "inf"], ["--valid inf", "number"]),
        (["synthesize", "--raw-events", "--overwrite"], ["--overwrite", "--raw-events"]),
        (["synthesize", "--raw-events", "--skip-existing"], ["--skip-existing", "--raw-events"]),
    ],
)
def test_contradictory_options_are_rejected(tmp_path: Path, words: list[str], fragments: list[str]) -> None:
    arguments = parse([*words, "--out", tmp_path / "out"])
    with pytest.raises(InputError) as caught:
        arguments.run(arguments)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert entries(tmp_path) == []


def test_odd_inputs_are_warned_about(tmp_path: Path) -> None:
    write_text(tmp_path / "e.csv", "user,song\n" + "".join(f"{n},{n % 5}\n" for n in range(40)))
    write_text(tmp_path / "valid.csv", "user,song\n1,1\n2,2\n3,3\n")
    words = ("prepare", "--events", "e.csv", "--query", "customer=user")
    same = crossfade_here(*words, "--item", "user", "--out", "same", cwd=tmp_path)
    assert same.returncode == 0
    assert "both read the column 'user'" in same.stderr
    few = crossfade_here(*words, "--item", "track=song", "--valid", "valid.csv", "--out", "few", cwd=tmp_path)
    assert few.returncode == 0
    assert messages(few.stderr) == [
        "crossfade: valid: has 3 interactions, so that a metric on it is mostly chance; hold out at least 100"
    ]
