"""Turn a notebook, with the outputs that it was saved with, into a page in Markdown."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def notebook_page(path: Path) -> str:
    """Return the cells of a notebook and their outputs."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return "\n\n".join(block for cell in notebook["cells"] for block in _blocks(cell)) + "\n"


def _blocks(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    printed = "".join(
        "".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream"
    )  # the lines of a progress bar overwrite each other
    if text := "\n".join(line.rpartition("\r")[2] for line in printed.split("\n")).strip("\n"):
        yield f"```text\n{text}\n```"
    for data in (output["data"] for output in cell["outputs"] if "data" in output):
        if image := data.get("image/png"):
            yield f"![Output of the code above](data:image/png;base64,{''.join(image).strip()})"
        else:
            yield f"```text\n{''.join(data['text/plain'])}\n```"
