"""The page of ``make bench`` is written from the recorded figures."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.append(str(ROOT / "benchmarks"))

from suite.page import PAGE, RECORD, fill, render  # noqa: E402


def test_committed_page_is_rendered_from_committed_figures() -> None:
    blocks = render(json.loads((DOCS / RECORD).read_text(encoding="utf-8")))
    page = (DOCS / PAGE).read_text(encoding="utf-8")
    assert page == fill(page, blocks), "run: .venv/bin/python benchmarks/bench.py --render"
