"""From a file of plays to recommendations: each command prints the next one, which works as it is typed."""

import random
import shlex
from pathlib import Path

import pytest
from command_here import crossfade_here
from running_command import messages, succeeded

from crossfade.base.errors import InputError
from crossfade.trainer.config.loading import load_job

TRACKS = ["Intro", "intro", "Midnight Summer", "Hoppípolla", "Creep", "Song; live", "-", "Nude", "Weird Fishes", "15"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with plays, a dataset of them, and its run, which the printed commands have made."""
    folder, draw = tmp_path_factory.mktemp("hour"), random.Random(5)
    lines = ["User Id,Artist,Song Title,Year"]
    for user in range(40):
        for _ in range(12):
            track = min(draw.randrange(len(TRACKS)), draw.randrange(len(TRACKS)))
            lines.append(f"u{user},Band {track},{TRACKS[track]},{2000 + track}")
    (folder / "plays.csv").write_text("\n".join(lines) + "\n")
    words = ("--query", "listener=User Id", "--item", "song=Artist+Song Title", "--hold-out-valid", "random:0.2")
    prepared = succeeded(crossfade_here("prepare", "--events", "plays.csv", *words, "--out", "data/plays", cwd=folder))
    written, _, train = prepared.stdout.splitlines()[-1].removeprefix("next: ").partition(" && ")
    _, text, _, job = shlex.split(written)
    (folder / job).write_text(text)
    trained = succeeded(crossfade_here(*shlex.split(train)[1:], "--set", "train.epochs=2", cwd=folder))
    (folder / "printed").write_text(trained.stdout)
    return folder


def test_commands_printed_at_the_end_of_training_work_as_typed(folder: Path) -> None:
    *_, place, level, similar, recommend = (folder / "printed").read_text().splitlines()
    assert place == "embeddings and report: runs/plays"
    assert level.startswith("ndcg@10 on valid is ")
    assert similar.startswith("next: crossfade similar runs/plays 'Band ")
    assert recommend.startswith("next: crossfade recommend runs/plays --customer u")
    for line in (similar, recommend):
        found = succeeded(crossfade_here(*shlex.split(line.removeprefix("next: "))[1:], cwd=folder))
        assert "Band " in found.stdout
        assert found.stderr == ""


def test_title_finds_the_track_and_is_listed_if_several_have_it(folder: Path) -> None:
    found = succeeded(crossfade_here("similar", "runs/plays", "midnight summer", cwd=folder))
    assert found.stdout.startswith("Band 2|Midnight Summer\n")
    assert "'midnight summer' is part of one id of song, which is used: Band 2|Midnight Summer (count " in found.stderr
    several = succeeded(crossfade_here("similar", "runs/plays", "INTRO", cwd=folder))
    assert "'INTRO' is part of 2 ids of song: Band 0|Intro (count " in several.stderr
    assert several.stdout.startswith("Band 0|Intro\n")


@pytest.mark.parametrize("words", [("similar", "runs/pay", "Intro"), ("status", "runs/pays"), ("similar", "play", "1")])
def test_misspelled_run_gets_a_suggestion(folder: Path, words: tuple[str, ...]) -> None:
    result = crossfade_here(*words, cwd=folder)
    assert result.returncode == 2
    assert messages(result.stderr)[-1].endswith("; did you mean 'runs/plays'?")


@pytest.mark.parametrize(("typed", "file"), [("play.yaml", "plays.yaml"), ("plays", "jobs/plays.yaml")])
def test_misspelled_file_gets_a_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_job(Path("nowhere.yaml"))
    assert "jobs/" not in str(caught.value)
    Path("jobs").mkdir()
    Path(file).write_text("name: small\ndata: {path: data/small}\n")
    with pytest.raises(InputError) as caught:
        load_job(Path(typed))
    assert str(caught.value) == f"{typed}: no such job file; did you mean '{file}'?"
