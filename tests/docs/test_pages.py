"""Markdown files: every relative link leads to a file, every anchor to a heading, and prose is wrapped."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_CODE_BLOCK = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:benchmarks|crossfade|deploy|docker|docs|kvstore|tests|trainer)/[\w/.-]+)`")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def links(text: str) -> Iterator[str]:
    """Yield the targets of all links that stay inside the repository; code blocks have none."""
    for target in _LINK.findall(_CODE_BLOCK.sub("", text)):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(text: str) -> set[str]:
    """Return the anchors of all headings, as GitHub derives them: lower case, hyphens for spaces, no punctuation."""
    anchors = set()
    for heading in _HEADING.findall(_CODE_BLOCK.sub("", text)):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        anchors.add(words.replace(" ", "-"))
    return anchors


def dead_links(page: Path) -> list[str]:
    """Return the links of ``page`` that lead nowhere."""
    dead = []
    for link in links(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    assert dead_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    if page.name != "CHANGELOG.md":  # which has old names too
        named = set(_PATH.findall(page.read_text(encoding="utf-8")))
        # A placeholder, and a file that setup.sh makes.
        named -= {"crossfade/cli/NAME.py", "kvstore/kernels.zip"}
        assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_is_wrapped_at_120_characters(page: Path) -> None:
    prose = _CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")] == []
