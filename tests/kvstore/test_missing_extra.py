"""The message about an optional package that is not installed."""

import pytest

from crossfade.base.errors import MissingExtraError


@pytest.mark.parametrize(("extra", "is_restricted"), [("index", False), ("aws", False), ("mxnet", True)])
def test_platform_is_named_only_where_a_package_needs_it(extra: str, is_restricted: bool) -> None:
    message = str(MissingExtraError("package", extra, "this"))
    where = " (only on Linux on x86-64 with Python 3.11)" if is_restricted else ""
    assert message == (
        f"this needs the package 'package', which is not installed here: pip install 'crossfade[{extra}]'{where}"
    )
