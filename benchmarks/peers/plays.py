"""Plays in a pandas frame, and how good recommendations for them are: the same for Crossfade and implicit.

    frame = read_plays(folder, TRAIN)           # columns customer and track, of text
    ndcg(recommended, read_plays(folder, HELD_OUT))

It runs in the environments of both, so it imports nothing but numpy and pandas.

Shapes: K places of a list.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

USER, TRACK, RANK = "customer", "track", "rank"
TRAIN, HELD_OUT = "train", "held_out"
K = 10


def read_plays(folder: Path, split: str) -> pd.DataFrame:
    """Return the plays of a split, TRAIN or HELD_OUT."""
    return pd.read_csv(folder / f"{split}.csv", dtype=str)


def ndcg(recommended: pd.DataFrame, held_out: pd.DataFrame) -> float:
    """Return the mean ndcg@10 over the customers of ``held_out``.

    Relevance is binary. The ideal list is as long as the customer's held-out plays, at most 10.

    Args:
        recommended: customers, tracks, and their ranks from 1; who is not in it has found nothing.
        held_out: distinct plays.
    """
    discount_K = 1 / np.log2(np.arange(2, K + 2))
    found = recommended[recommended[RANK] <= K].merge(held_out, on=[USER, TRACK])
    gain = pd.Series(discount_K[found[RANK].to_numpy() - 1]).groupby(found[USER].to_numpy()).sum()
    relevant = held_out.groupby(USER).size().clip(upper=K)
    ideal = pd.Series(np.cumsum(discount_K)[relevant.to_numpy() - 1], index=relevant.index)
    return float((gain.reindex(ideal.index, fill_value=0.0) / ideal).mean())
