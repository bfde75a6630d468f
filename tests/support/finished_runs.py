"""What tests read of runs that have ended: their quality on test, and the bits of their embeddings."""

import json
from pathlib import Path

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.trainer.embeddings.files import EmbeddingFiles


def quality(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "report.json").read_text())["metrics"]["test"]
    return found


def vectors(embeddings: Path) -> dict[str, FloatArray]:
    files = EmbeddingFiles(embeddings)
    return {name: files.vectors(name, np.arange(files.rows(name))) for name in files.entities}


def same_bits(one: Path, other: Path) -> bool:
    found, expected = vectors(one), vectors(other)
    return found.keys() == expected.keys() and all(found[name].tobytes() == expected[name].tobytes() for name in found)
