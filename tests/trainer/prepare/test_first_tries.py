"""What a new user types on a file as it came from elsewhere: each try ends with the next one, or with a dataset."""

from pathlib import Path

import pytest
from command_here import crossfade_here
from preparing import entries, write_text
from running_command import messages

pytestmark = pytest.mark.slow

SEMICOLONS = "User Id;Song Title;Artist;Played\n" + "".join(f"u{n};Song {n};Band {n};1\n" for n in range(9))


def error(folder: Path, *words: str) -> str:
    """Return the error of ``crossfade prepare`` on ``plays.csv`` in ``folder``, which writes nothing."""
    result = crossfade_here("prepare", "--events", "plays.csv", *words, "--out", "data", cwd=folder)
    assert result.returncode == 2
    assert "data" not in entries(folder)
    return messages(result.stderr)[-1].removeprefix("crossfade: error: ")


def test_missing_column_of_a_semicolon_file_is_the_one_named(tmp_path: Path) -> None:
    write_text(tmp_path / "plays.csv", SEMICOLONS)
    query = ("--query", "listener=User Id")
    columns = "its columns are: User Id, Song Title, Artist, Played"
    message = f"plays.csv: has no column 'Song_Title' (did you mean 'Song Title'?); {columns}"
    assert error(tmp_path, *query, "--item", "song=Song_Title") == message
    assert error(tmp_path, *query) == f"plays.csv: has no column 'item'; {columns}"
    joined = error(tmp_path, "--query", "listener=user_id ", "--item", "song=artist+Song Title")
    assert joined == f"plays.csv: has no column 'user_id ' (did you mean 'User Id'?); {columns}"
    joined = error(tmp_path, *query, "--item", "song=Artst+Song Title")
    assert joined == f"plays.csv: has no column 'Artst' (did you mean 'Artist'?); {columns}"
