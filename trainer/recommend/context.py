"""Context that recommendations are for: rows by IDs or names, and the average of what is left out.

    find_context(model, {"hour": "18", "device": "car"}, find)          # {"hour": 3, "device": 0}
    average_context(model, ["device"])                                  # a vector to add to those of queries

Shapes: N rows of a block, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError, OptionError
from crossfade.trainer.recommend.trained_model import TrainedModel

_BLOCK_ROWS = 1 << 16


Find = Callable[[str, Sequence[str]], IntArray]
"""Returns the rows of texts, IDs or names, of an entity."""


def find_context(model: TrainedModel, context: Mapping[str, str], find: Find) -> dict[str, int]:
    """Return the row of the value of each entity in ``context``.

    Raises:
        InputError: the model has no such context, or its dataset no such value.
    """
    known = [table.name for table in model.spec.context]
    rows = {}
    for entity, text in context.items():
        if entity not in known:
            found = f"its context is {', '.join(known)}" if known else "its queries have no context"
            raise OptionError(
                "context", found=f"{entity}={text}", problem=f"{model.uri} has no context '{entity}'; {found}"
            )
        try:
            rows[entity] = int(find(entity, [text])[0])
        except InputError as error:
            raise OptionError("context", found=f"{entity}={text}", problem=str(error)) from None
    return rows


def average_context(model: TrainedModel, given: Collection[str] = ()) -> FloatArray:
    """Return what the context entities that are not ``given`` add to a query on average over train: float32 (D,).

    Where events have context, a query's vector is trained as one term of a sum. Alone, it lacks what all contexts have
    in common: a model of plays and likes leaves part of the popularity of items to their two vectors. An event without
    a value adds nothing, so the sum over values is divided by all interactions of positive weight.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: the dataset cannot be read.
    """
    average_D = np.zeros(model.spec.query.dim)
    for table in model.spec.context:
        if table.name not in given:
            counts_R = model.vocabulary(table.name).counts()
            for start in range(0, table.rows, _BLOCK_ROWS):
                row_N = np.arange(start, min(start + _BLOCK_ROWS, table.rows))
                vectors_ND = model.vectors.vectors(table.name, row_N).astype(np.float64)
                average_D += (counts_R[row_N, None] * vectors_ND).sum(axis=0)
    if average_D.any():
        average_D /= model.vocabulary(model.spec.item.name).counts().sum()
    return average_D.astype(np.float32)
