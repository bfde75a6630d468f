"""Which store a job gets by the packages that are installed, and what is missing."""

import sys
from importlib.util import find_spec

import pytest
from needs import MXNET

from crossfade.base.errors import MissingExtraError
from crossfade.deploy.cluster.store_choice import choose_store, require_store
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig


def job(**cluster: object) -> JobConfig:
    return check_job({"name": "plays", "data": {"path": "plays"}, "cluster": cluster}, "job")


@pytest.fixture
def without_mxnet(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("mxnet", "horovod"):
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.usefixtures("without_mxnet")
@pytest.mark.parametrize(
    ("workers", "line"),
    [
        (4, "MXNet is not installed, so the 4 workers hold the tables, instead of 2 servers"),
        (1, "MXNet is not installed, so one process trains and holds the tables, instead of 2 servers"),
    ],
)
def test_workers_hold_the_tables_where_mxnet_is_missing(workers: int, line: str) -> None:
    lines: list[str] = []
    chosen = choose_store(job(servers=2, workers=workers), lines.append).cluster
    assert (chosen.store, chosen.servers, chosen.workers) == ("sharded", 0, workers)
    assert chosen.is_distributed == (workers > 1)
    assert lines == [line]


@pytest.mark.usefixtures("without_mxnet")
def test_what_cannot_go_without_mxnet_names_it() -> None:
    for alone in (job(store="mxnet", servers=2, workers=2), job(servers=1, workers=1, hosts=2)):
        assert choose_store(alone, pytest.fail) is alone
        with pytest.raises(MissingExtraError, match=r"needs the package 'mxnet'.* pip install 'crossfade\[mxnet\]'"):
            require_store(alone)
    require_store(job(workers=4))


@pytest.mark.skipif(find_spec("mxnet") is None, reason=MXNET)
def test_store_that_is_installed_is_left_alone() -> None:
    for given in (job(servers=2, workers=2), job(workers=4), job()):
        assert choose_store(given, pytest.fail) is given
        require_store(given)
