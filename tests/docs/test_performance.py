"""The page of ``make bench`` is what the suite writes from the recorded figures, and it shows what has failed."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.append(str(ROOT / "benchmarks"))

from suite.gpu_page import read_gpus  # noqa: E402
from suite.page import RECORD, render  # noqa: E402


def test_committed_page_is_rendered_from_committed_figures() -> None:
    files = render(json.loads((DOCS / RECORD).read_text(encoding="utf-8")), read_gpus(DOCS))
    changed = [name for name, text in files.items() if (DOCS / name).read_text(encoding="utf-8") != text]
    assert changed == [], "run: .venv/bin/python benchmarks/bench.py --render"
