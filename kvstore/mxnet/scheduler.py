"""The scheduler of ``dist_sync``, which introduces servers and workers to each other."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from crossfade.kvstore.mxnet.imports import free_store, import_mxnet
from crossfade.kvstore.mxnet.ports import filter_next_listener, private_sockets

Controller = Callable[[int, bytes, Any], None]
"""Executes a command of a worker: its number, its text, and a handle of MXNet."""


def run_scheduler(hosts: Sequence[str]) -> None:
    """Run the scheduler until the workers are done. Others may connect from ``hosts``; none: from anywhere."""
    store = import_mxnet().kv.create("dist_sync")
    filter_next_listener(hosts)
    with private_sockets():
        run_until_done(store, lambda _head, _body, _handle: None)


def run_until_done(store: Any, control: Controller) -> None:
    """Run the loop of MXNet's server or scheduler, by ``DMLC_ROLE``, and free ``store``; ``control`` must not raise."""
    from mxnet.base import _LIB, check_call

    controller = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(control)
    check_call(_LIB.MXKVStoreRunServer(store.handle, controller, None))
    free_store(store)
