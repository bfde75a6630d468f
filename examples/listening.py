"""Small synthetic listening for the notebooks: artists of ten genres, and users who like one or two of them."""

import numpy as np
import pandas as pd

GENRES = ("ambient", "blues", "folk", "funk", "jazz", "metal", "punk", "reggae", "soul", "techno")


def plays(users: int = 1_000, artists: int = 400, events: int = 40_000, seed: int = 0) -> pd.DataFrame:
    """Return events, one per row: user, artist, and time."""
    random = np.random.default_rng(seed)
    liked = random.integers(0, len(GENRES), (users, 2))
    user = random.integers(0, users, events)
    own = liked[user, random.integers(0, 2, events)]
    genre = np.where(random.random(events) < 0.9, own, random.integers(0, len(GENRES), events))
    rank = np.minimum(random.geometric(0.08, events) - 1, artists // len(GENRES) - 1)
    seconds = np.sort(random.integers(0, 90 * 86_400, events))
    times = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(seconds, "s")
    names = np.array([f"{GENRES[number]} artist {place}" for place in range(artists) for number in range(len(GENRES))])
    return pd.DataFrame({"user": user + 1, "artist": names[rank * len(GENRES) + genre], "at": times})
