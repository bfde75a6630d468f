"""Measure Crossfade on a GPU against the card's bandwidth and its peers, and write docs/gpus.json and its section.

    make bench-gpu                                  everything, on the first GPU: about an hour; resumes
    make bench-gpu ARGS='--only bpr softmax'
    .venv/bin/python benchmarks/gpu.py --device cpu     tiny sizes on the CPU, to check the scripts

It needs PyTorch for CUDA in .venv, and installs FBGEMM and implicit for CUDA into virtual environments in build/peers/.
The section "GPUs" of docs/performance.md lists those that cannot be installed or run, with the reason. Each measurement
runs in a separate process, and the measurements of a section take turns. Results are appended to build/bench/ as they
are made; those of the same commit and card are used again, unless --fresh is given. Figures of the CPU compare nothing:
they go to build/bench/gpu-cpu/.

The exit code is 2 where there is no GPU that PyTorch can use, and 1 if a measurement failed, unless a peer is not
installed. Of several GPUs, CUDA_VISIBLE_DEVICES chooses one.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from bench import FOLDER, REPEATS, run_all, say, today
from suite.environments import NOT_INSTALLED, versions
from suite.gpu_page import RECORD, read_gpus
from suite.gpu_plan import ENVIRONMENTS, FULL, GIB, SECTIONS, TINY, gpu_measurements
from suite.machine import MEASURED_ON_GPUS, commit, describe_machine
from suite.page import PAGE, render
from suite.page import RECORD as PERFORMANCE
from suite.processes import ROOT
from suite.provenance import keep_other_sections
from suite.results import Results

from crossfade.trainer.model.engines.cuda_driver import GpuInfo, find_gpus, format_version
from crossfade.trainer.model.engines.gpu_code import torch_reason

DOCS = ROOT / "docs"
PACKAGES = ("python", "numpy", "torch")
PEERS = {"gpu_fbgemm": ("fbgemm-gpu", "torch"), "gpu_implicit": ("implicit", "rmm-cu13")}
"""By environment, the packages whose versions are recorded."""


def find_card() -> GpuInfo | str:
    """Return the first GPU, or why it cannot be used."""
    state = find_gpus()
    if not state.gpus:
        return state.problem or "there is no GPU: NVIDIA's driver is not installed, or it has no device"
    reason = torch_reason(state.gpus[0])
    return state.gpus[0] if reason is None else f"{state.gpus[0]} cannot be used: {reason}"


def describe_card(card: GpuInfo | None) -> dict[str, Any]:
    """Return the facts of a card that figures belong to; None: the CPU."""
    if card is None:
        return {"name": "none: checked on the CPU"}
    return {
        "name": card.name,
        "memory_gib": round(card.memory_bytes / GIB, 1),
        "capability": format_version(card.capability),
        "cuda_version": format_version(card.cuda_version),
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of Python, of our packages, and of peers in their environments."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES[1:]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    for environment in ENVIRONMENTS:
        installed = {name.replace("_", "-"): number for name, number in versions([environment]).items()}
        for package in PEERS[environment]:
            if package in installed and installed[package] != found.get(package):
                found[f"{package} ({environment})" if package in found else package] = installed[package]
    return found


def record_of(results: Results, revision: str, card: GpuInfo | None, command: str) -> dict[str, Any]:
    """Return everything that the section is written from."""
    return {
        "scale": (FULL if card else TINY).name,
        "commit": revision,
        "date": today(),
        "command": command,
        "gpu": describe_card(card),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "measurements": [asdict(result) for result in results],
    }


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write the record into ``folder``, and the page that has a section of it, if its own record is there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if (folder / PERFORMANCE).exists():
        performance = json.loads((folder / PERFORMANCE).read_text(encoding="utf-8"))
        (folder / PAGE).write_text(render(performance, record)[PAGE], encoding="utf-8")


def keep_others(record: dict[str, Any], folder: Path, measured: list[str]) -> dict[str, Any]:
    """Return ``record`` with the earlier figures of sections other than ``measured``, if they are of the same card."""
    previous = read_gpus(folder)
    if previous is None or previous["gpu"] != record["gpu"]:
        return record
    return keep_other_sections(record, previous, measured, say)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: check the scripts, tiny sizes")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"measure only: {', '.join(SECTIONS)}"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help=f"take medians of N (default: {REPEATS}; cpu: 1)")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured for this commit")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the record to DIR (default: docs)")
    return parser.parse_args()


def main() -> int:
    """Measure, and write the record and the section."""
    arguments = _arguments()
    card = None if arguments.device == "cpu" else find_card()
    if isinstance(card, str):
        say(card)
        return 2
    name = "gpu-cpu" if card is None else f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.name.lower())}"
    out = arguments.out or (DOCS if card else FOLDER / name)
    revision, file = commit(MEASURED_ON_GPUS), FOLDER / f"{name}.jsonl"
    if arguments.fresh or card is None:
        file.unlink(missing_ok=True)
    results = Results.open(file, revision)
    memory = psutil.virtual_memory().total if card is None else card.memory_bytes
    planned = [
        measurement
        for measurement in gpu_measurements(FULL if card else TINY, FOLDER, "gpu:0" if card else "cpu", memory)
        if measurement.section in (arguments.only or SECTIONS)
    ]
    say(f"{card or 'checked on the CPU: these figures compare nothing'}; commit {revision}; results in {file}")
    command = " ".join(["make bench-gpu", *([f"ARGS='{' '.join(sys.argv[1:])}'"] if sys.argv[1:] else [])])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_all(planned, arguments.repeats or (REPEATS if card else 1), results, revision)
    except KeyboardInterrupt:
        say("interrupted; the same command resumes")
        return 130
    record = record_of(results, revision, card, command)
    write(out, keep_others(record, out, arguments.only) if arguments.only and card else record)
    print(out / RECORD)
    return 1 if any(result.error and not result.error.startswith(NOT_INSTALLED) for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
