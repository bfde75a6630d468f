"""Facts of the machine, the versions, and the commit that figures belong to."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from suite.environments import versions as peer_versions
from suite.processes import ROOT

PACKAGES = ("numpy", "numba", "pyarrow", "duckdb", "mxnet")
_DESCRIPTIONS = (
    "machine",
    "page",
    "cluster_page",
    "waiting_page",
    "gpu_page",
    "markup",
    "provenance",
    "charts",
    "targets",
)
_EXCLUDED = tuple(f":(exclude)benchmarks/suite/{name}.py" for name in _DESCRIPTIONS)
_PRODUCT = ("kvstore", "trainer", "deploy", "crossfade", "requirements.lock")
MEASURED = (
    *_PRODUCT,
    *("benchmarks/bench.py", "benchmarks/peers", "benchmarks/suite", "tests/support/net_hosts.py"),
    *_EXCLUDED,
    *(":(exclude)benchmarks/peers/gpu_*", ":(exclude)benchmarks/suite/gpu_*"),
)
"""Files that figures depend on: the packages and the suite, without what only describes, or runs on GPUs."""
MEASURED_ON_GPUS = (*_PRODUCT, "benchmarks/gpu.py", "benchmarks/peers", "benchmarks/suite", *_EXCLUDED)
"""The same for figures of GPUs."""
PEERS = ("implicit", "buffalo", "lightfm-next", "torch", "fbgemm-gpu-cpu", "fbgemm_gpu-cpu", "torchrec")


def describe_machine() -> dict[str, Any]:
    """Return cores, processor, caches as far as known, memory, and kernel."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {
        "processor": facts.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "virtual": "hypervisor" in facts.get("flags", ""),
    }


def describe_versions(environments: list[str]) -> dict[str, str]:
    """Return the versions of Python, of our packages, and of peers in ``environments``."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    installed = peer_versions(environments)
    return found | {name.replace("_", "-"): installed[name] for name in PEERS if name in installed}


def commit(measured: Sequence[str] = MEASURED) -> str:
    """Return the last commit that changed one of the files ``measured``, with a mark if they differ from it."""
    git = ["git", "-C", str(ROOT)]
    log = [*git, "log", "-1", "--format=%h", "--abbrev=10", "--", *measured]
    identity = subprocess.run(log, check=True, capture_output=True, text=True).stdout.strip()
    differs = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *measured], check=False).returncode
    return f"{identity}+changes" if differs else identity
