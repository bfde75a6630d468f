"""Add pages to the documentation site that are not Markdown files of ``docs/``; MkDocs calls the functions ``on_…``.

The pages in ``docs/`` are read on a code host too, so their links lead to other files of the repository. On the site,
README.md and others outside ``docs/`` are pages, and so is each file that a page links to, such as a source file; links
are changed accordingly. The help of commands, the options of all faces, the keys of jobs, events, metrics, and the
Python reference are generated.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from notebooks import notebook_page
from reference import commands_page, events_markdown, job_keys, metrics_markdown, options_page, python_page

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "examples").glob("*.ipynb"))]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "docs/README.md": "tasks.md",
    "examples/README.md": "examples/index.md",
    **{path: str(PurePosixPath(path).with_suffix(".md")) for path in NOTEBOOKS},
}
"""Pages of the site from outside ``docs/``, by their path in the repository."""
GENERATED = {
    "commands.md": commands_page,
    "options.md": options_page,
    "configuration.md": job_keys,
    "events.md": events_markdown,
    "metrics.md": metrics_markdown,
    "python-reference.md": python_page,
}
"""Pages that are generated from the code, and what generates them."""
SOURCES = "source"
"""Folder of the site with the pages of source files."""
_CODE_BLOCK = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\[\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_LANGUAGES = {".py": "python", ".yml": "yaml", ".yaml": "yaml", ".toml": "toml", ".sh": "sh"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages from outside ``docs/``, generated ones, and those of linked source files."""
    for path, uri in PAGES.items():
        content = notebook_page(ROOT / path) if path in NOTEBOOKS else (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=content))
    for uri, write in GENERATED.items():
        files.append(File.generated(config, uri, content=write()))
    written = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")} | set(PAGES)
    for source in sorted({source for page in written for source in _linked_sources(page)}):
        page = File.generated(
            config, f"{SOURCES}/{source}.md", content=_source_page(source), inclusion=InclusionLevel.NOT_IN_NAV
        )
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change a page's links into those of the site."""
    uri = page.file.src_uri
    path = next((path for path, page_uri in PAGES.items() if page_uri == uri), f"docs/{uri}")
    if not (ROOT / path).exists():  # generated, with links of the site
        return markdown
    return _outside_code(markdown, lambda text: _LINK.sub(lambda link: _site_link(link, path, uri), text))


def _site_link(link: re.Match[str], path: str, uri: str) -> str:
    text, target, anchor = link[1], _target(path, link[2]), link[3] or ""
    if (ROOT / target).is_dir():
        return f"`{target}/`"
    to = f"{SOURCES}/{target}.md" if _is_source(target) else PAGES.get(target, target.removeprefix("docs/"))
    return f"[{text}]({os.path.relpath(to, PurePosixPath(uri).parent)}{anchor})"


def _linked_sources(page: str) -> Iterator[str]:
    """Yield the files outside ``docs/`` that a page links to."""
    prose = _CODE_BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for link in _LINK.finditer(prose):
        target = _target(page, link[2])
        if _is_source(target) and (ROOT / target).is_file():
            yield target


def _is_source(path: str) -> bool:
    return path not in PAGES and (not path.startswith("docs/") or path.startswith("docs/site/"))


def _source_page(source: str) -> str:
    text = (ROOT / source).read_text(encoding="utf-8")
    language = _LANGUAGES.get(PurePosixPath(source).suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {source}\n\n``````{language}\n{text}\n``````\n"


def _target(page: str, link: str) -> str:
    """Return the path in the repository to which a page's relative link leads."""
    return os.path.normpath(PurePosixPath(page).parent / link)


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    parts = _CODE_BLOCK.split(markdown)
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))
