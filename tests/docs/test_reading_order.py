"""References from docs to the code: files exist and define the names that are quoted beside them."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SECTIONS = ("Reading order", "In process and on a GPU")
_LINK = re.compile(r"\[`(?P<text>[^`]+)`\]\((?P<target>[^)]+)\)")
_QUOTED = re.compile(r"(?<!`)(`+)(?P<text>[^`]+)\1(?!`)")
_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


@dataclass(frozen=True)
class Passage:
    """An item of a reading order, or a paragraph: the files it names, and the functions and classes."""

    files: list[Path]
    names: list[str]


def markdown_passages(page: Path) -> Iterator[Passage]:
    """Yield the items and paragraphs of the sections on the way of a batch, whose files are links."""
    for text in (text for title in _SECTIONS for text in re.split(r"\n\n|\n(?=\d+\. )", section(page, title))):
        files = [page.parent / link["target"] for link in _LINK.finditer(text)]
        yield Passage(files, _names(_LINK.sub("", text)))


def section(page: Path, title: str) -> str:
    """Return the text below the heading ``title``, up to the next one; empty without it."""
    return page.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]


def _names(text: str) -> list[str]:
    """Return the quoted names of a text, other than those of files."""
    quoted = [quotation["text"] for quotation in _QUOTED.finditer(text)]
    return [name for name in quoted if _NAME.fullmatch(name) and not name.endswith(".py")]


def definitions(source: str) -> set[str]:
    """Return the names of the functions, classes, methods and parameters in a source; methods also as Class.method."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    parameters = {node.arg for function in functions for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    methods = {f"{owner.name}.{node.name}" for owner in classes for node in owner.body if node in functions}
    return parameters | methods | {node.name for node in [*functions, *classes]}


def problems(passage: Passage) -> list[str]:
    """Return the files of a passage that do not exist, and the names that none of its files defines."""
    missing = [str(file) for file in passage.files if not file.exists()]
    sources = [file for file in passage.files if file.is_file() and file.suffix == ".py"]
    defined = {name for file in sources for name in definitions(file.read_text(encoding="utf-8"))}
    return missing + [name for name in passage.names if name not in defined]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/architecture.md", "README.md"])
def test_files_of_the_reading_order_define_its_names(page: str) -> None:
    passages = list(markdown_passages(ROOT / page))
    assert sum(len(passage.files) for passage in passages) >= 4
    assert any(passage.names for passage in passages)
    assert [problem for passage in passages for problem in problems(passage)] == []
