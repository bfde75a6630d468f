"""Find the rows of the context that recommendations are for, by IDs or names.

find_context(model, {"hour": "18", "device": "car"}, print)         # {"hour": 3, "device": 0}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from crossfade.kvstore.errors import InputError
from crossfade.trainer.recommend.row_names import RowNames
from crossfade.trainer.recommend.trained_model import TrainedModel

_MAX_LISTED = 50
"""Values of a context entity that an error lists all of."""


def find_context(model: TrainedModel, context: Mapping[str, str], log: Callable[[str], None]) -> dict[str, int]:
    """Return the row of the value of each entity in ``context``; ``log`` gets a line where several have a name.

    Raises:
        InputError: the model has no such context, or its dataset no such value.
    """
    known = [table.name for table in model.spec.context]
    rows = {}
    for entity, text in context.items():
        if entity not in known:
            found = f"its context is {', '.join(known)}" if known else "its queries have no context"
            raise InputError(f"--context {entity}={text}: {model.uri} has no context '{entity}'; {found}")
        vocabulary = model.vocabulary(entity)
        try:
            [rows[entity]] = RowNames(vocabulary, entity).find([text], log)
        except InputError as error:
            values = ""
            if vocabulary.rows <= _MAX_LISTED:
                ids = sorted(vocabulary.read(0, vocabulary.rows, ["id"]).column("id").drop_null().to_pylist())
                values = f"; all values: {', '.join(map(str, ids))}"
            raise InputError(f"--context {entity}={text}: {error}{values}") from None
    return rows
