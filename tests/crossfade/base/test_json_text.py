"""JSON of others is parsed if it has one meaning and bounded values, and rejected in one line otherwise."""

import pytest
from pydantic import BaseModel

from crossfade.base.json_text import parse_json, validate_json


class Point(BaseModel):
    x: int


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"x": 1, "x": 2}', "the key 'x' is given twice"),
        ('[{"a": {"b": 1, "b": 1}}]', "the key 'b' is given twice"),
        ("NaN", "NaN is not a number of JSON"),
        ("[-Infinity]", "-Infinity is not a number of JSON"),
        ("1e999", "the number 1e999 is not finite"),
        ("9" * 5000, "has more than 128 bits"),
        (str(2**127), "has more than 128 bits"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("{", "invalid JSON: Expecting"),
    ],
    ids=lambda text: text[:20],
)
def test_ambiguous_or_unbounded_json_is_rejected(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_json(text.encode())
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"x": "1"}', "x: input should be a valid integer"),
        ('{"x": 1.0}', "x: input should be a valid integer"),
        ('{"x": true}', "x: input should be a valid integer"),
        ('{"x": 1, "x": 1}', "the key 'x' is given twice"),
        ("[1]", "the file: input should be an object"),
    ],
)
def test_value_of_another_type_is_rejected_not_converted(text: str, problem: str) -> None:
    assert validate_json(Point, b'{"x": 1}').x == 1
    with pytest.raises(ValueError, match=problem):
        validate_json(Point, text.encode())
