"""Parse the values of options that are not declared yet: context, numbers, ports, pairs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from crossfade.base.errors import InputError


def parse_context(texts: Sequence[str], value: str, example: str) -> dict[str, str]:
    """Read the texts ``NAME=…`` of ``--context``, each name once; ``value`` names what follows, as in ``example``.

    Raises:
        InputError: a text has another form.
    """
    context: dict[str, str] = {}
    for text in texts:
        name, _, given = text.partition("=")
        if not name or not given or name in context:
            raise InputError(f"--context {text}: expected NAME={value}, each name once, as in {example}")
        context[name] = given
    return context


def parse_number(option: str, text: str) -> float:
    """Read the number ``text`` of ``option``, which may be written 1_000_000 or 1e6.

    Raises:
        InputError: the text is not a finite number.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{option} {text}: '{text}' is not a number; write it as 1000 or 1e3")
    return number


def parse_whole_number(option: str, text: str) -> int:
    """Read the integer ``text`` of ``option``, which may be written 1_000_000 or 1e6.

    Raises:
        InputError: the text is not an integer.
    """
    number = parse_number(option, text)
    if not number.is_integer():
        raise InputError(f"{option} {text}: expected an integer")
    return int(number)


def port(text: str) -> int:
    """Read a port, 0 to 65535.

    Raises:
        ArgumentTypeError: the text is not a port.
    """
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port, but found '{text}'")
    return int(text)


def positive_integer(text: str) -> int:
    """Read an integer of at least 1.

    Raises:
        ArgumentTypeError: the text is not one.
    """
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected an integer from 1, but found '{text}'")
    return int(text)
