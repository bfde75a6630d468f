"""Names of columns and splits of plays, and their text IDs. It imports nothing but numpy.

Shapes: N plays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

USER, TRACK, RANK = "user", "track", "rank"
TRAIN, HELD_OUT = "train", "held_out"


def text_ids(name: str, row_N: npt.NDArray[np.int64]) -> list[str]:
    """Return the IDs of numbered customers or tracks, (N,)."""
    return [f"{name}-{row}" for row in row_N.tolist()]
