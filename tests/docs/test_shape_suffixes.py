"""The letters at the end of array names are those of CONTRIBUTING.md, or the file's docstring says what they are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("kvstore", "trainer", "deploy", "crossfade", "benchmarks")
_ROW = re.compile(r"^\| ([A-Z]) \| .+ \|$", re.MULTILINE)
_ARRAY = re.compile(r"\w*[a-z]\w*_([A-Z1]*[A-Z][A-Z1]*)")
_SHAPES = re.compile(r"^Shapes: (.+?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)


def listed_letters() -> set[str]:
    """Return the letters of the table in CONTRIBUTING.md."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return set(_ROW.findall(page.partition("## Shape suffixes\n")[2].partition("\n## ")[0]))


def used_letters(source: str) -> set[str]:
    """Return the letters at the end of the names that a source assigns to or has as parameters."""
    names = [
        node.arg if isinstance(node, ast.arg) else node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.arg | ast.Attribute | ast.Name)
    ]
    return set("".join(match[1] for name in names if (match := _ARRAY.fullmatch(name)))) - {"1"}


def unexplained_letters(source: str, listed: set[str]) -> set[str]:
    """Return the letters used by a source that are neither listed nor in its docstring."""
    shapes = _SHAPES.search(ast.get_docstring(ast.parse(source)) or "")
    return used_letters(source) - listed - set(re.findall(r"\b[A-Z]\b", shapes[1] if shapes else ""))


def test_every_listed_letter_is_used() -> None:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert listed_letters() - {letter for file in files for letter in used_letters(file.read_text("utf-8"))} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_used_letter_is_explained(package: str) -> None:
    listed = listed_letters()
    unexplained = {
        str(file.relative_to(ROOT)): letters
        for file in (ROOT / package).rglob("*.py")
        if (letters := unexplained_letters(file.read_text(encoding="utf-8"), listed))
    }
    assert unexplained == {}


def test_unexplained_letter_is_found() -> None:
    source = '"""Rank.\n\nShapes: X rows.\n"""\ndef rank(row_X, starts_A1, key_YZ, MAX_Q):\n    self.sum_1D = 0\n'
    assert used_letters(source) == {"X", "A", "Y", "Z", "D"}
    assert unexplained_letters(source, {"A", "D"}) == {"Y", "Z"}
