"""Packages that others import without need are hidden from them, and work afterwards."""

import subprocess
import sys

import pytest

from crossfade.base.packages import hidden

IMPORT_ROLES = """
import sys
import crossfade.kvstore.jit
from crossfade.base.packages import hidden
from crossfade.kvstore.mxnet.imports import import_mxnet
import_mxnet()
with hidden("pandas"):
    import pyarrow as pa
    assert pa.chunked_array([[1, 2]]).to_numpy().tolist() == [1, 2]
hidden = ("scipy", "sklearn", "pandas")
assert not [name for name in sys.modules if name.partition(".")[0] in hidden]
from scipy import stats
assert stats.ttest_rel([1.0, 2.0, 4.0], [2.0, 1.0, 4.0]).pvalue == 1.0
"""


@pytest.mark.slow
def test_processes_of_a_job_do_not_load_what_they_do_not_use() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_ROLES], check=True, timeout=240)


def test_hidden_package_cannot_be_imported_in_the_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with hidden("colorsys", "json"):
        import json  # loaded already

        assert json.dumps(1) == "1"
        with pytest.raises(ImportError):
            import colorsys
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)
