"""A run names its CPU kernels in its log and report, and resumes on others."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from needs import X86, require_torch
from run_results import report_of
from running_command import crossfade, records, succeeded

from crossfade.trainer.training.report import describe_kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason=X86),
]

DESCRIBE = "from crossfade.trainer.training.report import describe_kernels as d; print(d({!r}))"
IMPORTS = {
    "cpu": "",
    "mxnet": "from crossfade.kvstore.mxnet.imports import import_mxnet; import_mxnet(); ",
    "torch": "import torch; ",
}


@pytest.mark.parametrize(
    ("engine", "own"), [("cpu", ""), ("mxnet", r", MXNet OpenBLAS Nehalem"), ("torch", ", PyTorch [A-Z0-9]+")]
)
def test_kernels_are_those_that_the_environment_chooses(engine: str, own: str) -> None:
    if engine == "torch":
        require_torch()
    chosen = {"OPENBLAS_CORETYPE": "Nehalem", "NUMBA_CPU_NAME": "generic"}
    command = [sys.executable, "-c", IMPORTS[engine] + DESCRIBE.format(engine)]
    printed = subprocess.run(command, env=os.environ | chosen, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(rf"OpenBLAS Nehalem, numpy [A-Z0-9_]+, Numba generic{own}\n", printed), printed


def test_run_names_its_kernels_and_resumes_on_others(tmp_path: Path) -> None:
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    train, run = ("train", "job.yaml", "--run-dir", "run"), tmp_path / "run"
    succeeded(crossfade_here(*train, cwd=tmp_path))
    first = describe_kernels("cpu")
    assert report_of(run)["kernels"] == first

    resume = (*train, "--resume", "--set")
    other_type = "Nehalem" if "Sandybridge" in first else "Sandybridge"
    result = crossfade(*resume, "train.epochs=3", cwd=tmp_path, variables={"OPENBLAS_CORETYPE": other_type})
    other = report_of(run)["kernels"]
    assert other == first.replace(first.split(",")[0], f"OpenBLAS {other_type}", 1)
    succeeded(result)
    trained = [record["kernels"] for record in records(run) if record.get("name") == "training"]
    assert trained == [first, other]
