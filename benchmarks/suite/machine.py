"""Facts of the machine, the versions, and the commit that figures belong to."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from crossfade.trainer.model.engines.cuda_driver import find_gpus
from suite.environments import versions as peer_versions
from suite.processes import ROOT

PACKAGES = ("numpy", "numba", "pyarrow", "duckdb", "mxnet")
MEASURED = (
    *("kvstore", "trainer", "deploy", "crossfade", "requirements.lock", "benchmarks/bench.py", "benchmarks/peers"),
    *("benchmarks/suite", "tests/support/net_hosts.py"),
    *(f":(exclude)benchmarks/suite/{name}.py" for name in ("machine", "page", "provenance")),
)
"""Files that figures depend on: the packages and the suite, without what only describes."""
PEERS = ("implicit", "torch", "fbgemm-gpu-cpu", "fbgemm_gpu-cpu", "torchrec")


def describe_machine() -> dict[str, Any]:
    """Return cores, processor, memory, kernel, and the first GPU, if there is one."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {
        "processor": facts.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "gpu": str(gpus[0]) if (gpus := find_gpus().gpus) else "",
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


def commit() -> str:
    """Return the last commit that changed one of the files ``MEASURED``, with a mark if they differ from it."""
    git = ["git", "-C", str(ROOT)]
    log = [*git, "log", "-1", "--format=%h", "--abbrev=10", "--", *MEASURED]
    identity = subprocess.run(log, check=True, capture_output=True, text=True).stdout.strip()
    differs = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *MEASURED], check=False).returncode
    return f"{identity}+changes" if differs else identity
