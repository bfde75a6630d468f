"""The letters at the end of array names are those of CONTRIBUTING.md, or the file's docstring says what they are."""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("kvstore", "trainer", "deploy", "crossfade", "benchmarks")
_ROW = re.compile(r"^\| ([A-Z]) \| .+ \|$", re.MULTILINE)
_ARRAY = re.compile(r"\w*[a-z]\w*_([A-Z1]*[A-Z][A-Z1]*)")
_SHAPES = re.compile(r"^Shapes: (.+?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)


def listed_letters() -> set[str]:
    """Return the letters of the table in CONTRIBUTING.md."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return set(_ROW.findall(page.partition("## Shape suffixes\n")[2].partition("\n## ")[0]))


def used_letters(tree: ast.Module) -> set[str]:
    """Return the letters at the end of the names that a module assigns to or has as parameters."""
    names = [
        node.arg if isinstance(node, ast.arg) else node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.arg | ast.Attribute | ast.Name)
    ]
    return set("".join(match[1] for name in names if (match := _ARRAY.fullmatch(name)))) - {"1"}


def explained_letters(tree: ast.Module) -> set[str]:
    """Return the letters that the docstring of a module explains."""
    shapes = _SHAPES.search(ast.get_docstring(tree) or "")
    return set(re.findall(r"\b[A-Z]\b", shapes[1] if shapes else ""))


def test_every_listed_letter_is_used_and_every_used_one_explained() -> None:
    listed, used, unexplained = listed_letters(), set(), {}
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        letters = used_letters(tree)
        used |= letters
        if rest := letters - listed - explained_letters(tree):
            unexplained[str(file.relative_to(ROOT))] = rest
    assert unexplained == {}
    assert listed - used == set()
