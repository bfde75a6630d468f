"""Active rows: sorted, unique, with the uses of each."""

import numpy as np
import pytest

from crossfade.trainer.model.active_rows import ActiveRows


def test_active_rows_are_sorted_unique_and_list_their_uses() -> None:
    uses_N = np.array([7, 3, 7, 2**40, 0, 3, 7])
    active = ActiveRows.of(uses_N)
    assert active.rows_A.tolist() == [0, 3, 7, 2**40]
    np.testing.assert_array_equal(active.rows_A[active.index_N], uses_N)
    uses = [active.order_N[active.starts_A1[a] : active.starts_A1[a + 1]].tolist() for a in range(4)]
    assert uses == [[4], [1, 5], [0, 2, 6], [3]]
    assert ActiveRows.of(np.empty(0, np.int64)).rows_A.shape == (0,)


def test_sorted_uses_are_grouped_as_they_are_and_keep_their_order() -> None:
    uses_N = np.array([7, 3, 7, 2**40, 0, 3, 7])
    active, order_N = ActiveRows.sorted(uses_N)
    assert order_N.tolist() == [4, 1, 5, 0, 2, 6, 3]
    expected = ActiveRows.of(np.sort(uses_N))
    for name in ("uses_N", "rows_A", "index_N", "order_N", "starts_A1"):
        np.testing.assert_array_equal(getattr(active, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("rows", [1, 2, 2**11, 2**22 + 1, 2**45])
def test_groups_of_many_uses_are_those_of_numpy(rows: int) -> None:
    uses_N = np.random.default_rng(1).integers(0, rows, 5_000)
    active = ActiveRows.of(uses_N)
    rows_A, index_N = np.unique(uses_N, return_inverse=True)
    np.testing.assert_array_equal(active.rows_A, rows_A)
    np.testing.assert_array_equal(active.index_N, index_N)
    np.testing.assert_array_equal(active.order_N, np.argsort(uses_N, kind="stable"))
