"""Nearest neighbors among the embeddings that a run wrote: exact, by cosine.

neighbors = NearestNeighbors(Path("runs/lastfm/embeddings"), "artist")
for row, cosine in neighbors.nearest(neighbors.find("Radiohead"), 10):
    print(neighbors.label(row), cosine)
"""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from kvstore.errors import InputError
from trainer.embeddings.files import EmbeddingFiles, vectors_of
from trainer.evaluation.top_k import unit_rows


class NearestNeighbors:
    """The rows of one entity, with their IDs, names and unit vectors."""

    def __init__(self, embeddings: Path, entity: str) -> None:
        """Load ``entity`` from the folder ``embeddings``.

        Raises:
            InputError: there are no embeddings, or none of that entity.
        """
        table = EmbeddingFiles(embeddings).read(entity)
        self._entity = entity
        if table.column("id").null_count:
            # A vacant row has no ID: it is neither found nor a neighbor.
            table = table.filter(pc.is_valid(table.column("id")))
        self._ids = [str(value) for value in table.column("id").to_pylist()]
        self._names: list[str | None] = (
            table.column("name").to_pylist() if "name" in table.column_names else [None] * len(self._ids)
        )
        self._unit_ND = unit_rows(vectors_of(table.column("vector")))

    def label(self, row: int) -> str:
        """Return the name of a row or, if it has none, its ID."""
        return self._names[row] or self._ids[row]

    def find(self, name: str) -> int:
        """Return the row whose ID or name is ``name``; of several, the first, which is the most frequent.

        Raises:
            InputError: there is none; the message suggests similar names.
        """
        folded = name.casefold()
        for row, (row_id, row_name) in enumerate(zip(self._ids, self._names, strict=True)):
            if row_id == name or (row_name is not None and row_name.casefold() == folded):
                return row
        known = {label.casefold(): label for label in map(self.label, range(len(self._ids)))}
        near = [known[match] for match in difflib.get_close_matches(folded, known, n=3)]
        hint = f"; did you mean {', '.join(repr(match) for match in near)}?" if near else ""
        raise InputError(f"there is no {self._entity} with the ID or name '{name}'{hint}")

    def nearest(self, row: int, count: int) -> list[tuple[int, float]]:
        """Return the ``count`` rows nearest to ``row``, other than itself, nearest first, each with its cosine."""
        cosine_N = self._unit_ND @ self._unit_ND[row]
        cosine_N[row] = -np.inf
        best = np.argsort(-cosine_N, kind="stable")[: min(count, len(cosine_N) - 1)]
        return [(int(other), float(cosine_N[other])) for other in best]
