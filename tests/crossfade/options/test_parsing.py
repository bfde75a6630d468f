"""Values of options of the commands."""

import pytest

from crossfade.kvstore.errors import InputError
from crossfade.options.parsing import parse_minimums


@pytest.mark.parametrize("texts", [["customer=5", "customer=2"], ["track=1,track=1"]])
def test_entity_with_two_minimums_is_rejected(texts: list[str]) -> None:
    with pytest.raises(InputError, match="each entity once"):
        parse_minimums("--min-count", texts)


def test_minimums_are_read_by_entity() -> None:
    assert parse_minimums("--min-count", ["customer=5,track=10"]) == {"customer": 5, "track": 10}
