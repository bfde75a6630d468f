"""How a model compares vectors; apart from the sections of a job, so that command lines name it without numpy."""

from typing import Literal

ScoreKind = Literal["dot", "cosine", "euclidean"]
