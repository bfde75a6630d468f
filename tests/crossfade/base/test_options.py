"""Options are declared once: values from texts and Python, errors as data, and what the command line makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from crossfade.base.errors import OptionError
from crossfade.base.options import Integer, Number, Options, Share, option
from crossfade.cli.command import CommandParser, add_options, read_options


class Ranking(Options):
    """Declares one option of each type."""

    source: str = option(..., "read this", value="FROM", positional=True)
    k: Integer = option(10, "list N rows", value="N", short="k", ge=1)
    damping: Number = option(0.0, "rank popular rows lower", ge=0)
    exclude: tuple[Literal["train", "valid"], ...] = option(
        ("train",), "leave out (default: train)", optional_values=True
    )
    max_bad: Share = option(0.1, "fail above this share")
    context: tuple[str, ...] = option((), "recommend in this context", repeat=True)
    overwrite: bool = option(False, "replace the file")
    everyone: bool = option(False, "recommend to all")
    file: str | None = option(None, "recommend to those in this file", value="FILE")
    out: Path | None = option(None, "write to this file")
    runs: tuple[Path, ...] = option((), "compare with these runs")

    one_of = (("everyone", "file"),)


def parse(*words: str) -> Ranking:
    parser = CommandParser(prog="rank")
    add_options(parser, Ranking)
    return read_options(parser.parse_args(words), Ranking)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-k 1e3", {"k": 1000}),
        ("--k 1_000", {"k": 1000}),
        ("--k 9007199254740993", {"k": 2**53 + 1}),
        ("--exclude", {"exclude": ()}),
        ("--exclude valid train", {"exclude": ("valid", "train")}),
        ("--max-bad 10%", {"max_bad": 0.1}),
        ("--context hour=1 --context day=2", {"context": ("hour=1", "day=2")}),
        ("--overwrite", {"overwrite": True}),
    ],
)
def test_command_line_makes_the_same_options_as_python(words: str, expected: dict[str, Any]) -> None:
    assert parse("run", "--everyone", *words.split()) == Ranking.of(source="run", everyone=True, **expected)


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"k": 0}, ("k",), "k 0: expected an integer from 1"),
        ({"k": True}, ("k",), "k True: expected an integer from 1"),
        ({"k": 2.5}, ("k",), "k 2.5: expected an integer from 1"),
        ({"damping": "nan"}, ("damping",), "damping nan: expected a number from 0"),
        ({"exclude": ["valid", "trian"]}, ("exclude", 1), "exclude trian: did you mean train?"),
        ({"exclude": "x"}, ("exclude", 0), "exclude x: expected train or valid"),
        ({"max_bad": "11"}, ("max_bad",), "max_bad 11: expected a share: 0.1 or 10%, at most 1 or 100%"),
        ({"overwrit": True}, ("overwrit",), "overwrit: is unknown; did you mean overwrite?"),
        ({"file": "ids.txt"}, ("file",), "file: was given, and so was everyone; expected one of everyone or file"),
        ({"everyone": False}, ("everyone",), "everyone: expected one of everyone or file"),
        ({"out": "s3://music/x"}, ("out",), "out s3://music/x: expected a local path"),
        ({"runs": ["a", "s3://music/x"]}, ("runs",), "runs s3://music/x: expected a local path"),
    ],
)
def test_invalid_options_are_errors_with_field_and_fix(
    values: dict[str, Any], field: tuple[str | int, ...], message: str
) -> None:
    with pytest.raises(OptionError) as raised:
        Ranking.of(**{"source": "run", "everyone": True, **values})
    assert (raised.value.field, str(raised.value)) == (field, message)


def test_missing_option_is_described() -> None:
    with pytest.raises(OptionError, match=r"^source: is missing; read this$"):
        Ranking.of(everyone=True)


def test_command_line_names_options_as_they_are_typed() -> None:
    parser = CommandParser(prog="rank")
    add_options(parser, Ranking)
    with pytest.raises(OptionError) as raised:
        read_options(parser.parse_args(["run", "--k=0", "--everyone"]), Ranking)
    assert raised.value.worded(parser.word).startswith("-k 0: ")
