"""Models that follow from a job and a dataset: their tables, and what no model can be made of."""

from typing import Any

import pytest
from resolved_jobs import job_with

from crossfade.base.errors import InputError
from crossfade.trainer.data.manifest import DatasetManifest, Entity, Feature, Split
from crossfade.trainer.model.spec import make_model

ROWS = {"customer": 3, "track": 6, "artist": 2, "country": 4, "hour": 5, "device": 2}


def manifest(context: tuple[str, ...] = ("hour", "device"), **changes: Any) -> DatasetManifest:
    fields: dict[str, Any] = {
        "query": "customer",
        "item": "track",
        "entities": {name: Entity(rows=rows, id_type="int64", files=[]) for name, rows in ROWS.items()},
        "features": {"track": {"artist": Feature(files=[])}, "customer": {"country": Feature(files=[])}},
        "context": list(context),
        "splits": {"train": Split(files=[])},
        "has_timestamp": True,
        "is_grouped": True,
    }
    return DatasetManifest(**(fields | changes))


def test_model_tables_follow_from_towers() -> None:
    plain = make_model(job_with(item_features=["track"]), manifest())
    assert [table.name for table in plain.tables] == ["customer", "track"] == [table.name for table in plain.vectors]
    model = make_model(job_with(item_features=["track", "artist"], query_features=["country"]), manifest())
    assert [(table.name, table.rows) for table in model.tables] == [("country", 4), ("track", 6), ("artist", 2)]
    assert [table.name for table in model.vectors] == ["customer", "track", "country", "artist"]


def test_entity_of_the_dataset_that_is_called_history_is_context() -> None:
    entities = {**manifest().entities, "history": Entity(rows=2, id_type="int64", files=[])}
    data = manifest(entities=entities, context=("hour", "history"))
    model = make_model(job_with(query_features=["customer", "history"]), data)
    assert model.history is None
    assert [table.name for table in model.context] == ["history"]


HISTORY = ["customer", "history"]


@pytest.mark.parametrize(
    ("model", "changes", "fragment"),
    [
        ({"item_features": ["track", "tag"]}, {}, "names 'tag', but d has no such feature of track; it has artist"),
        ({"item_features": ["country"]}, {}, "model.item_features names 'country'"),
        ({"query_features": ["customer", "customer"]}, {}, "each name once"),
        ({"query_features": ["hour", "device"]}, {}, "names 'hour', which is context, but no entity that has it"),
        ({"query_features": ["customer", "hour", "hour"]}, {}, "once"),
        ({"query_features": ["customer", "hour"], "dense": {"query": [4]}}, {}, "leave out model.dense.query"),
        ({"query_features": ["customer", "minute"]}, {}, "and context (hour, device), which context adds"),
        ({"item_features": ["track", "hour"]}, {}, "model.item_features names 'hour'"),
        ({"query_features": HISTORY}, {"is_grouped": False}, "is not grouped"),
        (
            {"query_features": HISTORY, "history": {"half_life": 3}},
            {"has_timestamp": False},
            "has no timestamps by which to order histories",
        ),
        ({"query_features": HISTORY, "item_features": ["artist"]}, {}, "add track there, or leave history out"),
        ({"query_features": HISTORY, "dense": {"query": [4]}}, {}, "leave out model.dense.query"),
        ({"query_features": ["customer", "history", "history"]}, {}, "once"),
    ],
    ids=str,
)
def test_model_that_the_dataset_rules_out_is_rejected(
    model: dict[str, Any], changes: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(InputError) as caught:
        make_model(job_with(**model), manifest(**changes))
    assert fragment in str(caught.value)
