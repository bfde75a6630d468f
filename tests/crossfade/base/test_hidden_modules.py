"""Packages that others import without need are hidden from them, and work afterwards."""

import sys

import pytest

from crossfade.base.packages import hidden


def test_hidden_package_cannot_be_imported_in_the_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with hidden("colorsys", "json"):
        import json  # loaded already

        assert json.dumps(1) == "1"
        with pytest.raises(ImportError):
            import colorsys
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)
