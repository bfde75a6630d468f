"""The documentation site builds without a warning, has every command, works offline, and finds what is searched."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import crossfade
from crossfade.cli.main import make_parser

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


class _Loads(HTMLParser):
    """Collect the addresses that a page loads by itself: not those of links to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" or tag in {"script", "img", "iframe", "source", "object"}:
            self.addresses += [value for name in ("src", "href", "data") if (value := given.get(name))]


def loaded(page: str) -> list[str]:
    """Return the addresses on other hosts that a page loads."""
    parser = _Loads()
    parser.feed(page)
    styles = re.findall(r"url\(([^)]+)\)", page)
    return [address for address in parser.addresses + styles if re.match(r"['\"]?(https?:)?//", address)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    assert {page.name: found for page in pages if (found := loaded(page.read_text(encoding="utf-8")))} == {}
    styles = [style.read_text(encoding="utf-8") for style in site.rglob("*.css")]
    assert [address for style in styles for address in re.findall(r"url\(['\"]?(?:https?:)?//[^)]*", style)] == []


def test_page_of_commands_has_each_with_its_help(site: Path) -> None:
    page = (site / "commands.html").read_text(encoding="utf-8")
    [commands] = [action.choices for action in make_parser()._actions if isinstance(action.choices, dict)]
    assert {name for name in commands if f"usage: crossfade {name} " not in re.sub("<[^>]+>", "", page)} == set()


def test_page_of_options_has_types_defaults_and_limits_of_each_face(site: Path) -> None:
    page = re.sub("<[^>]+>", " ", (site / "options.html").read_text(encoding="utf-8"))
    text = " ".join(page.split())
    assert "--k an integer from 1 10 list N rows for each query" in text
    assert "popularity_damping a number from 0 to 100 0.0 rank popular items lower" in text
    for title in ("crossfade checkpoints list", "crossfade ec2-host", "crossfade.Model.evaluate", "GET /vector"):
        assert title in text


def test_keys_events_and_metrics_are_on_their_pages(site: Path) -> None:
    for page, name in (
        ("configuration", "train.epochs"),
        ("events", "log_write_failed"),
        ("metrics", "crossfade_step"),
    ):
        assert f"<code>{name}</code>" in (site / f"{page}.html").read_text(encoding="utf-8")


def test_python_reference_has_every_public_name(site: Path) -> None:
    page = (site / "python-reference.html").read_text(encoding="utf-8")
    public = {name for name in crossfade.__all__ if not name.startswith("_")}
    assert {name for name in public if f'id="crossfade.{name}"' not in page} == set()


def test_notebooks_are_shown_with_their_outputs(site: Path) -> None:
    page = (site / "examples" / "recommendations_and_map.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,' in page
    text = re.sub("<[^>]+>", "", page)
    assert "crossfade.fit(" in text
    assert "training: 100%" in text
    assert "training:   0%" not in text
