"""docs/configuration.md lists every key of a job file, as the code defines it.

``python tests/docs/test_configuration.py --write`` writes the generated part again.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from crossfade.trainer.config.explain import explain_fields
from crossfade.trainer.config.schema import JobConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
MARK = "## Job\n"


def reference() -> str:
    """Describe all keys in Markdown, one table per section."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    sections: dict[str, list[tuple[str, str, str, str]]] = {}
    for field in explain_fields():
        sections.setdefault(field[0].rpartition(".")[0], []).append(field)
    for section, fields in sections.items():
        named = [part for part in section.split(".") if part]
        model = JobConfig
        for part in named:
            model = model.model_fields[part].annotation  # type: ignore[assignment]
        yield from ([f"## {section}", ""] if named else [MARK.strip(), ""])
        yield from [str(model.__doc__).splitlines()[0], "", "| key | type | default | meaning |", "|---|---|---|---|"]
        for key, kind, default, meaning in fields:
            cells = (f"`{key}`", kind, default if default == "required" else f"`{default}`", meaning)
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        yield ""


def test_configuration_page_lists_every_key() -> None:
    page = PAGE.read_text(encoding="utf-8")
    written = MARK + page.partition(MARK)[2]
    assert written.rstrip() == reference().rstrip(), "run: python tests/docs/test_configuration.py --write"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help="write the generated part of the page")
    parser.parse_args()
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(head + reference().rstrip() + "\n", encoding="utf-8")
