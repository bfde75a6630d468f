"""Choose fonts of this machine for texts in any script, such as Chinese, Japanese, and Korean names, and emoji.

fonts = choose_fonts(["Björk", "宇多田ヒカル"])
fonts.families          # for matplotlib's "font.family"; the first that has a character draws it
fonts.can_draw("☂")

Matplotlib brings DejaVu Sans, which has Latin, Greek, Cyrillic, and more. Others are searched for only if a text needs
them. Fonts of bitmaps, such as Noto Color Emoji, cannot be drawn by matplotlib.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

PACKAGES = "fonts-noto-cjk fonts-symbola"
"""Debian's packages of fonts for Chinese, Japanese, and Korean, and for symbols and emoji."""
_DEFAULT = "DejaVu Sans"
_INVISIBLE = dict.fromkeys([0x200B, 0x200D, 0x2060, 0xFE0E, 0xFE0F])
"""Joiners and selectors of variants, which matplotlib would draw as missing characters."""


@dataclass(frozen=True)
class Fonts:
    """Families of fonts in their order, and the characters that none of them has."""

    families: tuple[str, ...]
    missing: frozenset[str]

    def can_draw(self, text: str) -> bool:
        """Return whether all characters of ``text`` have a shape."""
        return self.missing.isdisjoint(text)

    def drawable(self, text: str) -> str:
        """Return ``text`` with a question mark for each character without a shape."""
        return "".join("?" if letter in self.missing else letter for letter in text)


def plain(text: str) -> str:
    """Return ``text`` without invisible characters."""
    return text.translate(_INVISIBLE)


def choose_fonts(texts: Iterable[str]) -> Fonts:
    """Return the default font and, while characters of ``texts`` are missing, those of this machine that have most."""
    from matplotlib import font_manager

    # It warns of families without a bold font; the plain one is drawn.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    wanted = {ord(letter) for text in texts for letter in text}
    missing = wanted - _characters(font_manager.findfont(_DEFAULT))[1]
    families, candidates = [_DEFAULT], {}
    if missing:
        # Not matplotlib's list, which it keeps: fonts that have been installed since are not on it.
        candidates = {path: _characters(path) for path in sorted(font_manager.findSystemFonts())}
    while missing:
        best = max(candidates, key=lambda path: len(candidates[path][1] & missing), default=None)
        if best is None or not candidates[best][1] & missing:
            break
        family, characters = candidates.pop(best)
        font_manager.fontManager.addfont(best)
        families.append(family)
        missing -= characters
    return Fonts(tuple(families), frozenset(map(chr, missing)))


def _characters(path: str) -> tuple[str, set[int]]:
    """Return the family of a font and the characters it has; none if matplotlib cannot draw it."""
    from matplotlib.ft2font import FT2Font

    try:
        font: Any = FT2Font(path)
    except (OSError, RuntimeError):  # no font, or one of bitmaps
        return "", set()
    return (font.family_name, set(font.get_charmap())) if font.scalable else ("", set())
