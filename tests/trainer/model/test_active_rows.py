"""Active rows: sorted, unique, with the uses of each."""

import numpy as np

from trainer.model.active_rows import ActiveRows


def test_active_rows_are_sorted_unique_and_list_their_uses() -> None:
    uses_N = np.array([7, 3, 7, 2**40, 0, 3, 7])
    active = ActiveRows.of(uses_N)
    assert active.rows_A.tolist() == [0, 3, 7, 2**40]
    np.testing.assert_array_equal(active.rows_A[active.index_N], uses_N)
    uses = [active.order_N[active.starts_A1[a] : active.starts_A1[a + 1]].tolist() for a in range(4)]
    assert uses == [[4], [1, 5], [0, 2, 6], [3]]
    assert ActiveRows.of(np.empty(0, np.int64)).rows_A.shape == (0,)
