"""Train on plays.csv; print neighbors of an artist, and artists for a customer."""

import csv
from pathlib import Path

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import bm25_weight
from scipy.sparse import csr_matrix

with Path("plays.csv").open(encoding="utf-8", newline="") as file:
    plays = list(csv.DictReader(file))
customers, customer_rows = np.unique([play["customer"] for play in plays], return_inverse=True)
artists, artist_rows = np.unique([play["artist"] for play in plays], return_inverse=True)
counts = csr_matrix((np.array([play["plays"] for play in plays], dtype=np.float32), (customer_rows, artist_rows)))
weights = bm25_weight(counts.T, K1=100, B=0.8).T.tocsr()
model = AlternatingLeastSquares(factors=64, random_state=1)
model.fit(weights)
[artist] = np.flatnonzero(artists == "Radiohead")
for row, score in zip(*model.similar_items(artist, N=11), strict=True):
    print(f"{score:.3f}  {artists[row]}")
[customer] = np.flatnonzero(customers == "2")
for row, score in zip(*model.recommend(customer, weights[customer], N=10), strict=True):
    print(f"{score:.3f}  {artists[row]}")
