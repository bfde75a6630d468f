"""docs/configuration.md lists every key of a job file, as the code defines it.

``python tests/docs/test_configuration.py --write`` writes the generated part again.
"""

import argparse
import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "configuration.md"
_reference = runpy.run_path(str(DOCS / "site" / "reference.py"))
MARK, job_keys = _reference["JOB_MARK"], _reference["job_keys"]


def test_configuration_page_lists_every_key() -> None:
    page = PAGE.read_text(encoding="utf-8")
    written = MARK + page.partition(MARK)[2]
    assert written.rstrip() == job_keys().rstrip(), "run: python tests/docs/test_configuration.py --write"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help="write the generated part of the page")
    parser.parse_args()
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(head + job_keys().rstrip() + "\n", encoding="utf-8")
