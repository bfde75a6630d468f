"""Rank near ties; print a checksum of matrix products, which round by the kernel, and one of the rankings."""

import zlib

import numpy as np

from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.top_k import rank_vectors

QUERIES, ITEMS, DIM, DEPTH = 100, 3000, 50, 40
KINDS: tuple[ScoreKind, ...] = ("dot", "cosine", "euclidean")


def main() -> None:
    """Print both checksums."""
    rng = np.random.default_rng(1)
    query_QD = rng.normal(size=(QUERIES, DIM)).astype(np.float32)
    base_ID = rng.normal(size=(ITEMS // 20, DIM))[rng.integers(0, ITEMS // 20, ITEMS)]
    item_ID = (base_ID * (1 + rng.normal(size=(ITEMS, DIM)) * 1e-7)).astype(np.float32)
    nothing = JaggedArray.empty(QUERIES)
    rankings = 0
    for kind in KINDS:
        score = Score.of(kind, 0.3)
        for array in rank_vectors(query_QD, score, ITEMS, lambda row_E: item_ID[row_E], nothing, DEPTH):
            rankings = zlib.crc32(array.tobytes(), rankings)
    print(zlib.crc32((query_QD @ item_ID.T).tobytes()), rankings)


if __name__ == "__main__":
    main()
