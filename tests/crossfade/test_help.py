"""The help of every command: a sentence, examples that parse, options in groups with verb-first texts."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from crossfade.cli.command import CommandParser
from crossfade.cli.main import main, make_parser

ROOT = Path(__file__).resolve().parents[2]
MAX_COLUMNS = 120


def parsers(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, CommandParser]]:
    """Yield every command below ``parser``, by its words."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield " ".join((*words, name)), command
                yield from parsers(command, (*words, name))


WHOLE = make_parser()
PARSERS = dict(parsers(WHOLE))
every_command = pytest.mark.parametrize("command", PARSERS)


def examples(command: str) -> list[str]:
    """Return the command lines among the examples of a command's help."""
    epilog = (PARSERS[command].epilog or "").replace("\\\n", " ")
    lines = epilog.partition("Examples:\n")[2].partition("\n\n")[0].split("\n")
    return [line.strip() for line in lines if line.startswith("  ") and not line.startswith("      ")]


def test_help_lists_the_commands_that_people_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"prepare", "validate", "submit ec2", "agent"} <= PARSERS.keys()
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^    ([a-z0-9-]+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    assert set(listed) == {command.partition(" ")[0] for command in PARSERS} - {"ec2-host"}


@every_command
def test_help_has_a_sentence_examples_that_parse_and_notes_that_fit(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: crossfade {command}")
    assert "docs/" not in printed, "an installed package has no pages"
    parser = PARSERS[command]
    sentence = (parser.description or "").strip().partition("\n\n")[0]
    assert re.fullmatch(r"[A-Z][^.]*(?:\.\w[^.]*)*\.", sentence, re.DOTALL), sentence
    lines = [line.partition("crossfade ")[2].partition(" > ")[0] for line in examples(command)]
    assert len(lines) >= 2
    for line in lines:
        if "--explain" not in line:
            WHOLE.parse_args(shlex.split(line))
    assert any(line.startswith(command) for line in lines)
    assert [line for line in f"{parser.description}\n{parser.epilog}".split("\n") if len(line) > MAX_COLUMNS] == []


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "trian a.yaml",
            "crossfade: error: there is no command 'trian'; did you mean 'train'?; see 'crossfade --help'",
        ),
        ("train a.yaml --overwite", "unrecognized arguments: --overwite; did you mean --overwrite?; see "),
        ("submit ec2 a.yaml --hots=2", "unrecognized arguments: --hots=2; did you mean --hosts?; see "),
        ("train a.yaml --epochs 3", "unrecognized arguments: --epochs 3; set keys of a job by --set KEY=VALUE; see "),
        ("map runs/a more", "unrecognized arguments: more; see 'crossfade map --help'"),
        ("recommend", "the following arguments are required: FROM; see 'crossfade recommend --help'"),
    ],
)
def test_words_that_cannot_be_parsed_get_a_hint_in_one_line(
    capsys: pytest.CaptureFixture[str], typed: str, message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(typed.split())
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("prepare --train no.csv --out x", "--events no.csv: no such file; "),
        ("similar runs/a 1 -k0", "-k 0: expected an integer from 1"),
    ],
)
def test_error_names_the_option_as_it_is_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, typed: str, message: str
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(typed.split()) == 2
    assert capsys.readouterr().err.startswith(f"crossfade: error: {message}")
