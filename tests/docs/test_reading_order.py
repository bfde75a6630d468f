"""References from docs and docstrings to the code: files exist and define the names that are quoted beside them."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from crossfade.trainer.config.json_schema import explain_fields

ROOT = Path(__file__).resolve().parents[2]
_ITEM = re.compile(r"^\d+\. \[`(?P<file>[^`]+)`\]\([^)]+\): ", re.MULTILINE)
_SECTIONS = ("Reading order", "In process and on a GPU")
PACKAGES = ("crossfade/api", "crossfade/base", "crossfade/cli", "trainer", "kvstore", "deploy")
_DATA = {".dat", ".json", ".jsonl", ".yaml"}
MAX_FILES = 18
"""Files that a reader opens for the way of one batch."""
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


def test_way_of_a_batch_is_in_few_files_each_of_which_is_an_item() -> None:
    text = section(ROOT / "docs" / "architecture.md", "Reading order")
    items = [item["file"] for item in _ITEM.finditer(text)]
    links = [link["text"] for link in _LINK.finditer(text)]
    assert links == items
    assert 10 <= len(set(links)) == len(links) <= MAX_FILES


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/architecture.md", "README.md"])
def test_files_of_the_reading_order_define_its_names(page: str) -> None:
    passages = list(markdown_passages(ROOT / page))
    assert sum(len(passage.files) for passage in passages) >= 4
    assert any(passage.names for passage in passages)
    assert [problem for passage in passages for problem in problems(passage)] == []


def modules() -> list[Path]:
    """Return the modules of the product."""
    return [*(ROOT / "crossfade").glob("*.py"), *(path for each in PACKAGES for path in (ROOT / each).rglob("*.py"))]


def broken_references(module: Path, source: str, known: set[str]) -> list[str]:
    """Return what ``source`` quotes in double backquotes and what does not exist: files and dotted names.

    A file is named relative to the folder of ``module`` or one above it. A dotted name begins with a name of the
    source, a key of jobs, or one of ``known``.
    """
    folders = [folder for folder in module.parents if folder.is_relative_to(ROOT)]
    names = set(re.findall(r"\w+", re.sub(r"``[^`\n]+``", "", source)))
    found = []
    for quoted in re.findall(r"``([^`\n]+)``", source):
        if re.fullmatch(r"[\w./-]+\.(py|md|sh|toml)", quoted):
            found += [] if any((folder / quoted).exists() for folder in folders) else [quoted]
        elif re.fullmatch(r"[a-z_]\w*(\.\w+)+(\(\))?", quoted) and Path(quoted).suffix not in _DATA:
            found += [] if quoted.partition(".")[0] in names | known else [quoted]
    return found


@pytest.mark.slow
def test_docstrings_and_comments_name_files_and_modules_that_exist() -> None:
    known = {path.stem for path in modules()} | {key.partition(".")[0] for key, *_ in explain_fields()}
    known |= set(sys.stdlib_module_names) | {"numpy", "numba", "prometheus_client"}
    sources = {path: path.read_text(encoding="utf-8") for path in modules()}
    broken = {str(path): broken_references(path, source, known) for path, source in sources.items()}
    assert {path: found for path, found in broken.items() if found} == {}
    assert [str(path) for path, source in sources.items() if has_doubled_docstring(source)] == []


def has_doubled_docstring(source: str) -> bool:
    """Return whether one string follows another, so that the second describes what it does not stand below."""
    bodies = [node.body for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Module | ast.ClassDef)]
    strings = [
        [isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in body] for body in bodies
    ]
    return any(first and second for body in strings for first, second in pairwise(body))
