"""The picture of a map, whose names come from data: where they are written, and in which fonts."""

import itertools
import shutil
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest

from crossfade.trainer.maps.items_map import ItemsMap
from crossfade.trainer.maps.map_labels import Labels
from crossfade.trainer.maps.picture import _Picture, choose_fonts, write_picture

pytestmark = pytest.mark.slow

NAMES = ("$\\z$", "\x1b[2J\x07\t\r", "A$AP", "$x_{$")
"""Formulas that matplotlib cannot parse, and controls of a terminal, which it would print with a warning."""
SCRIPT_A = "\U0001d49c"
"""A letter that DejaVu Sans does not have, and STIX General, which comes with matplotlib too, has."""
NOWHERE = "\ue0f3"
"""A character of private use."""


def items_map(names: list[str], labels: Labels | None, seed: int = 1) -> ItemsMap:
    count = len(names)
    place_N2 = np.random.default_rng(seed).standard_normal((count, 2)).astype(np.float32)
    nothing = np.empty((count, 0), np.int32)
    return ItemsMap("plays", np.arange(count), pa.array(range(count)), names, place_N2, labels, nothing, None)


@pytest.fixture
def no_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the machine no font but matplotlib's, and return a folder for others."""
    monkeypatch.setattr("matplotlib.font_manager.X11FontDirectories", [str(tmp_path / "fonts")])
    monkeypatch.setattr("matplotlib.font_manager._get_fontconfig_fonts", list)
    (tmp_path / "fonts").mkdir()
    return tmp_path / "fonts"


@pytest.mark.slow
def test_any_name_is_drawn_as_text(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert write_picture(items_map(list(NAMES), Labels(NAMES, np.arange(4))), tmp_path / "map.png") is None
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"


def test_names_are_in_the_picture_and_cover_none() -> None:
    names = [f"A band with a long name, the {number}th" for number in range(300)]
    drawn = items_map(names, Labels(("a label that is long", "other", "third"), np.arange(300) % 4 - 1))
    picture = _Picture(drawn, choose_fonts(names))
    picture._draw_islands()
    picture._draw_names()
    assert len(picture._taken) > 15
    for box in picture._taken:
        assert (box.p0 >= picture._axes.bbox.p0 - 1).all()
        assert (box.p1 <= picture._axes.bbox.p1 + 1).all()
    assert not [one for one, other in itertools.combinations(picture._taken, 2) if one.overlaps(other)]


def test_legend_has_the_items_without_a_label() -> None:
    picture = _Picture(items_map(["x"] * 30, Labels(("a", "b"), np.arange(30) % 3 - 1)), choose_fonts("x"))
    picture._draw_items()
    [legend] = picture._figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "others"]


@pytest.mark.slow
def test_font_of_the_machine_draws_what_the_default_one_lacks(no_fonts: Path, tmp_path: Path) -> None:
    names = [SCRIPT_A, *map(str, range(30))]
    note = write_picture(items_map(names, Labels((f"label {SCRIPT_A}",), np.arange(31) % 2 - 1)), tmp_path / "map.png")
    assert note is not None
    assert f"no font of this machine has all characters of 2 names, such as {SCRIPT_A}; on Debian: apt-get" in note
    shutil.copy(Path(mpl.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf"), no_fonts)
    fonts = choose_fonts([*names, NOWHERE])
    assert fonts.families == ("DejaVu Sans", "STIXGeneral")
    assert fonts.can_draw(SCRIPT_A)
    assert fonts.drawable(f"a{NOWHERE}{SCRIPT_A}") == f"a?{SCRIPT_A}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert write_picture(items_map(names, None), tmp_path / "map.png") is None


def test_file_that_is_no_font_is_passed_over(no_fonts: Path) -> None:
    (no_fonts / "broken.ttf").write_bytes(b"no font")
    assert choose_fonts(["a", NOWHERE]).missing == {NOWHERE}
