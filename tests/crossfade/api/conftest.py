"""Plays with planted preferences, as a data frame, and a model that was trained on them."""

import numpy as np
import pandas as pd
import pytest
from cluster_data import planted_splits

import crossfade

SETTINGS = {"train.batch_size": 512, "negatives.kind": "per_example", "negatives.count": 4, "loss": "bpr"}


@pytest.fixture(scope="session")
def plays() -> pd.DataFrame:
    customers, tracks = planted_splits()["train"]
    return pd.DataFrame(
        {
            "user": [f"user_{customer}" for customer in customers],
            "track": tracks,
            "title": pd.Categorical([f"Title {track}" for track in tracks]),
            "at": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(len(tracks)), unit="s"),
        }
    )


@pytest.fixture(scope="session")
def model(plays: pd.DataFrame) -> crossfade.Model:
    return crossfade.fit(
        plays, query="user", item="track", names={"track": "title"}, dim=16, epochs=8, settings=SETTINGS
    )
