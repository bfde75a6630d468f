"""How long a study still takes counts the starts of its trainings, of which many are short."""

import pytest

from crossfade.deploy.tuning.quick_study import Pace


def test_starts_count_beside_epochs() -> None:
    pace = Pace()
    assert pace.left({4: 28}) is None
    pace.add(elapsed=2.4, trained=0.4, epochs=4)
    pace.add(elapsed=2.8, trained=0.8, epochs=8)
    assert pace.left({4: 28, 13: 9, 40: 4}) == pytest.approx(41 * 2.0 + (28 * 4 + 9 * 13 + 4 * 40) * 0.1)


def test_resumed_training_has_no_negative_start() -> None:
    pace = Pace()
    pace.add(elapsed=1.0, trained=3.0, epochs=3)
    assert pace.left({1: 2}) == pytest.approx(2.0)
