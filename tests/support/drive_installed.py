"""Use an installed Crossfade as the documentation shows it, on each kind of data frame; print what it recommends."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

import crossfade

random = np.random.default_rng(0)
user = random.integers(0, 200, 20_000)
artist = user % 4 + 4 * np.minimum(random.geometric(0.1, 20_000), 25)
plays = pd.DataFrame({"user": [f"user_{number}" for number in user], "artist": [f"artist {name}" for name in artist]})
for frame in (plays, pl.from_pandas(plays), pa.Table.from_pandas(plays)):
    model = crossfade.fit(frame, query="user", item="artist", dim=16, epochs=2)
    found = model.recommend("user_42", k=3)
    assert type(found) is type(frame), type(found)
    assert model.similar("artist 8", k=3) is not None
assert "site-packages" in str(Path(crossfade.__file__))
model.save("runs/a")
assert crossfade.load("runs/a", frame="arrow").recommend("user_42", k=3).equals(found)
command = [str(Path(sys.executable).with_name("crossfade")), "recommend", "runs/a", "--customer", "user_42", "-k", "3"]
printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
assert all(name in printed for name in found.column("artist").to_pylist()), printed
print(found.column("artist").to_pylist())
