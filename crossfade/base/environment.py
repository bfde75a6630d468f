"""Read settings from environment variables.

environment_integer("CROSSFADE_S3_ATTEMPTS", 12, 1, 1000)     # 12 where it is not set
"""

import os

from crossfade.base.errors import InputError

_MAX_SHOWN = 40
"""Maximum number of characters of a value in an error."""


def environment_integer(variable: str, default: int, low: int, high: int) -> int:
    """Return the environment variable ``variable`` as an integer from ``low`` to ``high``.

    It is ``default`` if the variable is not set, or empty.

    Raises:
        InputError: it is not such an integer.
    """
    text = os.environ.get(variable)
    if not text:
        return default
    digits = text.lstrip("0") or "0"
    # Digits are counted first, since int() raises another error for thousands of them.
    if text.isascii() and text.isdecimal() and len(digits) <= len(str(high)) and low <= int(digits) <= high:
        return int(digits)
    found = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    raise InputError(f"{variable} is {found!r}, expected an integer from {low} to {high}; correct it, or unset it")
