"""Values of options of the commands."""

import pytest

from crossfade.base.errors import InputError
from crossfade.cli.options.parsing import parse_minimums, parse_on_bad_line, parse_on_missing


@pytest.mark.parametrize("texts", [["customer=5", "customer=2"], ["track=1,track=1"]])
def test_entity_with_two_minimums_is_rejected(texts: list[str]) -> None:
    with pytest.raises(InputError, match="each entity once"):
        parse_minimums("--min-count", texts)


def test_minimums_are_read_by_entity() -> None:
    assert parse_minimums("--min-count", ["customer=5,track=10"]) == {"customer": 5, "track": 10}


def test_policies_of_bad_lines_and_missing_values_take_the_words_of_each_other() -> None:
    assert [parse_on_bad_line(word) for word in ("skip", "drop", "fail", None)] == [
        ("skip", None),
        ("skip", None),
        ("fail", None),
        ("fail", None),
    ]
    assert [parse_on_missing(word) for word in ("drop", "skip", "fail", None)] == ["drop", "drop", "fail", "fail"]
    with pytest.raises(InputError, match="--on-missing ignore: expected fail or drop"):
        parse_on_missing("ignore")
