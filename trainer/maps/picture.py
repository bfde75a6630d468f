"""Draw a map as a PNG, in fonts of this machine for names in any script, such as Japanese or Korean, and emoji.

note = write_picture(items_map, Path("maps/map.png"))       # what could not be drawn

Matplotlib brings DejaVu Sans, which has Latin, Greek, Cyrillic, and more. Other fonts are searched for only if a text
needs them. Fonts of bitmaps, such as Noto Color Emoji, cannot be drawn by matplotlib.

Shapes: N items, M drawn ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossfade.base.errors import MissingExtraError, escape_unprintable
from crossfade.trainer.maps.items_map import ItemsMap
from crossfade.trainer.maps.map_labels import PALETTE, place_names

UNLABELED = "#b4b4b4"
_INCHES, _DPI = 11.0, 150
_AREA = (0.015, 0.015, 0.815, 0.945)
"""Left, bottom, width, and height of the map in the picture; the legend is to the right, the title above."""
_MARGIN = 0.03
_NAMED_ITEMS, _CANDIDATES = 40, 400
"""Names that are drawn at most, and of how many of the most frequent items."""
_MIN_DISTANCE = 0.045
"""Least distance between two items whose names are drawn, as a fraction of the map's size."""
_BESIDE = ((6, 0, "left", "center"), (-6, 0, "right", "center"), (0, 6, "center", "bottom"), (0, -6, "center", "top"))
"""Where a name may be beside its dot: how many points away, and how it is aligned there."""
_FONT_PACKAGES = "fonts-noto-cjk fonts-symbola"
"""Debian's packages of fonts for Chinese, Japanese, and Korean, and for symbols and emoji."""
_DEFAULT_FONT = "DejaVu Sans"
_INVISIBLE = dict.fromkeys([0x200B, 0x200D, 0x2060, 0xFE0E, 0xFE0F])
"""Joiners and selectors of variants, which matplotlib would draw as missing characters."""


def write_picture(items_map: ItemsMap, path: Path) -> str | None:
    """Draw ``items_map`` into the PNG file ``path``: items colored by label, islands and the most frequent items named.

    Returns:
        Which names could not be drawn, and what to install; None if all could.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise MissingExtraError("matplotlib", "map", "crossfade map") from error

    frequent = [_text(name) for name in items_map.names[:_CANDIDATES]]
    labels = [_text(name) for name in items_map.labels.names] if items_map.labels is not None else []
    fonts = choose_fonts([_text(items_map.title), *frequent, *labels])
    # Names may have dollar signs, and controls of terminals, which matplotlib would print in its warnings.
    with rc_context({"text.parse_math": False, "font.family": list(fonts.families)}):
        _Picture(items_map, fonts).write(path)
    lacking = sum(not fonts.can_draw(text) for text in [*frequent, *labels])
    if not lacking:
        return None
    return (
        f"map.png: no font of this machine has all characters of {lacking} name{'s' * (lacking != 1)}, such as "
        f"{''.join(sorted(fonts.missing))[:5]}; on Debian: apt-get install {_FONT_PACKAGES}"
    )


def _text(name: str) -> str:
    """Return ``name`` as it is drawn, without invisible characters."""
    return escape_unprintable(name.translate(_INVISIBLE))


class _Picture:
    """A figure with a map, and the places of it that have text."""

    def __init__(self, items_map: ItemsMap, fonts: Fonts) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._map, self._fonts = items_map, fonts
        # Of Any, since matplotlib's annotations reject options in dictionaries.
        self._figure: Any = Figure(figsize=(_INCHES, _INCHES), dpi=_DPI)
        canvas: Any = FigureCanvasAgg(self._figure)
        self._renderer = canvas.get_renderer()
        self._axes: Any = self._figure.add_axes(_AREA)
        self._axes.set_axis_off()
        self._show_all()
        self._taken: list[Any] = []

    def _show_all(self) -> None:
        """Show all places, on the same scale in both directions."""
        low_2, high_2 = self._map.place_N2.min(axis=0), self._map.place_N2.max(axis=0)
        middle_2, size_2 = (low_2 + high_2) / 2, np.array(_AREA[2:])
        reach_2 = size_2 * max(1e-9, float(((high_2 - low_2) / size_2).max())) * (0.5 + _MARGIN)
        self._axes.set_xlim(middle_2[0] - reach_2[0], middle_2[0] + reach_2[0])
        self._axes.set_ylim(middle_2[1] - reach_2[1], middle_2[1] + reach_2[1])

    def write(self, path: Path) -> None:
        """Draw everything, and write the file."""
        title = self._fonts.drawable(_text(self._map.title))
        self._figure.text(_AREA[0], 0.97, title, fontsize=15, va="center")
        self._draw_items()
        self._draw_islands()
        self._draw_names()
        self._figure.savefig(path, format="png", metadata={"Software": None})

    def _draw_items(self) -> None:
        place_N2, labels = self._map.place_N2, self._map.labels
        area = float(np.clip(40_000 / len(place_N2), 0.5, 14))
        if labels is None:
            self._axes.scatter(*place_N2.T, s=area, c=PALETTE[0], linewidths=0, rasterized=True)
            return
        groups = [*zip(range(len(labels.names)), labels.names, labels.colors, strict=True), (-1, "others", UNLABELED)]
        dots = {}
        for number, name, color in groups:
            if (chosen_N := labels.label_N == number).any():
                style = {"s": area, "c": color, "linewidths": 0, "rasterized": True, "zorder": 1 if number < 0 else 2}
                dots[self._fonts.drawable(_text(name))] = self._axes.scatter(*place_N2[chosen_N].T, **style)
        place = {"loc": "lower left", "bbox_to_anchor": (_AREA[0] + _AREA[2], _AREA[1])}
        self._figure.legend(dots.values(), dots.keys(), frameon=False, fontsize=10, markerscale=2.5, **place)

    def _draw_islands(self) -> None:
        labels = self._map.labels
        if labels is None:
            return
        for name, place in place_names(labels, self._map.place_N2).items():
            style = {"fontsize": 17, "weight": "bold", "color": labels.colors[labels.names.index(name)]}
            self._write(self._fonts.drawable(_text(name)), place, [(0, 0, "center", "center")], 4, inward=True, **style)

    def _draw_names(self) -> None:
        """Write the names of the most frequent items that are far enough from each other, where there is room."""
        place_N2 = self._map.place_N2
        size = float(np.ptp(place_N2, axis=0).max())
        drawn: list[int] = []
        for number, place_2 in enumerate(place_N2[:_CANDIDATES]):
            if len(drawn) == _NAMED_ITEMS:
                return
            distance_M = np.hypot(*(place_N2[drawn] - place_2).T)
            name = _text(self._map.names[number])
            has_room = (distance_M > _MIN_DISTANCE * size).all() and self._fonts.can_draw(name)
            if has_room and self._write(name, place_2, _BESIDE, 2, fontsize=7, color="#222222"):
                drawn.append(number)

    def _write(self, text: str, place: Any, beside: Any, outline: int, *, inward: bool = False, **style: Any) -> bool:
        """Write ``text`` at the first place of ``beside`` that is free and in the map; return whether there was one.

        With ``inward``, a text that would reach out of the map is moved into it.
        """
        from matplotlib.patheffects import withStroke

        style["path_effects"] = [withStroke(linewidth=outline, foreground="white")]
        area = self._axes.bbox
        for right, up, horizontal, vertical in beside:
            aligned = {"ha": horizontal, "va": vertical, "textcoords": "offset points"}
            written = self._axes.annotate(text, place, (right, up), **aligned, **style)
            box = written.get_window_extent(self._renderer)
            if inward:
                shift_2 = np.maximum(area.p0 - box.p0, 0) - np.maximum(box.p1 - area.p1, 0)
                written.set_position(tuple(shift_2 * 72 / _DPI))
                box = written.get_window_extent(self._renderer)
            is_inside = (box.p0 >= area.p0 - 1).all() and (box.p1 <= area.p1 + 1).all()
            if is_inside and not any(box.overlaps(other) for other in self._taken):
                self._taken.append(box)
                return True
            written.remove()
        return False


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


def choose_fonts(texts: Iterable[str]) -> Fonts:
    """Return the default font and, while characters of ``texts`` are missing, those of this machine that have most."""
    from matplotlib import font_manager

    # It warns of families without a bold font; the plain one is drawn.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    wanted = {ord(letter) for text in texts for letter in text}
    missing = wanted - _characters(font_manager.findfont(_DEFAULT_FONT))[1]
    families, candidates = [_DEFAULT_FONT], {}
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
