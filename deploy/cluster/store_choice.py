"""Which store holds the tables of a distributed job, by the packages that are installed here.

    job = choose_store(job, _logger.info)       # without MXNet, the workers hold the tables instead of servers
    require_store(job)                          # MissingExtraError: ...

Packages are looked for and not imported, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from crossfade.base.text import counted
from crossfade.kvstore.mxnet.imports import require_mxnet
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.allreduce import require_horovod


def choose_store(job: JobConfig, notify: Callable[[str], None]) -> JobConfig:
    """Return ``job`` with a store that is installed here, where ``cluster.store`` is ``auto``.

    Servers are MXNet's. Without MXNet, the workers hold the tables instead, and ``notify`` receives a line about it.
    """
    cluster = job.cluster
    if cluster.store != "auto" or not cluster.servers or find_spec("mxnet") is not None:
        return job
    holders = f"the {cluster.workers} workers hold the tables"
    if cluster.workers == 1:
        if cluster.host_count > 1:
            return job  # one worker could not use the other hosts: MXNet is named as missing
        holders = "one process trains and holds the tables"
    notify(f"MXNet is not installed, so {holders}, instead of {counted(cluster.servers, 'server')}")
    return job.model_copy(update={"cluster": cluster.model_copy(update={"store": "sharded", "servers": 0})})


def require_store(job: JobConfig) -> None:
    """Check that what connects the processes of ``job`` is installed here.

    Raises:
        MissingExtraError: it is not.
    """
    if job.cluster.servers:
        require_mxnet()
    if job.needs_horovod:
        require_horovod()
