"""Towers of several embeddings: their vectors, and the gradients of each table."""

import numpy as np
import pytest
from towers import DIM, ROWS, TABLES, Parts, expected_item, make_towers, tables

from crossfade.trainer.data.reader import Interactions
from crossfade.trainer.data.schedule import BatchSlice
from crossfade.trainer.model.batches import Batch, make_batch
from crossfade.trainer.model.spec import ModelSpec, Score
from crossfade.trainer.model.towers import Towers, TowerVectors


def batch_of(tracks: list[int], negatives: list[int], step: int = 0) -> Batch:
    count = len(tracks)
    examples = Interactions(np.arange(count), np.array(tracks, dtype=np.int64), np.ones(count, np.float32))
    return make_batch(
        BatchSlice(examples, np.arange(count), count),
        np.array([*tracks, *negatives], dtype=np.int64),
        epoch=0,
        step=step,
    )


TRACKS = ROWS["track"]
ALL = Parts(("track", "artist", "tag"))


@pytest.mark.parametrize("parts", [ALL, *(Parts(names) for names in (("track", "tag"), ("artist", "tag"), ("tag",)))])
def test_vector_outside_training_is_sum_of_available_embeddings(parts: Parts) -> None:
    values_by_table = tables()
    _, towers = make_towers(parts)
    expected = [expected_item(parts, values_by_table, track) for track in range(TRACKS)]
    source = TowerVectors(towers, lambda rows: {name: values_by_table[name][rows_A] for name, rows_A in rows.items()})
    np.testing.assert_allclose(source.vectors("track", np.arange(TRACKS)), expected, atol=1e-12)
    np.testing.assert_array_equal(source.vectors("tag", np.array([1, 4])), values_by_table["tag"][[1, 4]])


def test_id_dropout_varies_by_row_and_step_and_keeps_rows_without_features() -> None:
    (_, with_dropout), (_, without_dropout) = make_towers(ALL, id_dropout=0.5), make_towers(ALL)
    kept: list[tuple[int, ...]] = []
    for step in range(64):
        batch = with_dropout.add_tower_inputs(batch_of([0, 1, 4], [3, 2], step=step))
        again = with_dropout.add_tower_inputs(batch_of([4], [1, 3], step=step))  # as for another worker
        own = set(with_dropout.active(batch)["track"].tolist())
        assert own & {1, 3, 4} == set(with_dropout.active(again)["track"].tolist())
        assert 3 in own  # has no features
        assert own <= set(
            without_dropout.active(without_dropout.add_tower_inputs(batch_of([0, 1, 4], [3, 2])))["track"].tolist()
        )
        kept.append(tuple(sorted(own)))
    assert len(set(kept)) == 8  # 0, 1 and 4 are dropped independently
    shares = [np.mean([row in own for own in kept]) for row in (0, 1, 4)]
    assert 0.25 < min(shares) <= max(shares) < 0.75
    source = TowerVectors(with_dropout, lambda rows: {name: tables()[name][rows_A] for name, rows_A in rows.items()})
    expected = [expected_item(ALL, tables(), track) for track in range(TRACKS)]
    np.testing.assert_allclose(source.vectors("track", np.arange(TRACKS)), expected, atol=1e-12)


def test_model_without_features_passes_through_unchanged() -> None:
    towers = Towers(ModelSpec(TABLES["customer"], TABLES["track"], Score.of("dot", 1.0)), [])
    batch = batch_of([4, 0], [3])
    assert towers.add_tower_inputs(batch) is batch
    block = {"customer": np.zeros((2, DIM)), "track": np.zeros((3, DIM))}
    vectors, tape = towers.forward(batch, block)
    assert vectors is block
    assert towers.backward(batch, tape, block).tables is block
    assert {name: rows.tolist() for name, rows in towers.active(batch).items()} == {
        "customer": [0, 1],
        "track": [0, 3, 4],
    }
