"""GPUs as the driver's library reports them; the library is a stand-in."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from cuda_stub import H100, K80, V100, build_cuda_stub, cuda_stub_environment

from crossfade.trainer.model.engines.cuda_driver import DriverState, GpuInfo

FIND = "from crossfade.trainer.model.engines.cuda_driver import *; print(repr(find_gpus()))"
UNUSABLE = "the GPUs of this machine cannot be used: cuInit of NVIDIA's driver, libcuda.so.1, returns "


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cuda_stub(tmp_path_factory.mktemp("cuda"))


def find_gpus_with(environment: Mapping[str, str]) -> DriverState:
    """Call ``find_gpus`` in a process with ``environment``: one that runs would keep the library it has loaded."""
    result = subprocess.run([sys.executable, "-c", FIND], env=environment, capture_output=True, text=True, check=True)
    state = eval(result.stdout, {"DriverState": DriverState, "GpuInfo": GpuInfo})
    assert isinstance(state, DriverState)
    return state


def test_each_gpu_has_index_name_capability_and_memory(library: Path) -> None:
    state = find_gpus_with(cuda_stub_environment(library, K80, V100, H100))
    assert state == DriverState(
        (
            GpuInfo(0, "Tesla K80", (3, 7), 11996954624),
            GpuInfo(1, "Tesla V100-SXM2-16GB", (7, 0), 16935419904),
            GpuInfo(2, "NVIDIA H100 80GB HBM3", (9, 0), 85028765696),
        )
    )
    assert str(state.gpus[2]) == "gpu:2 (NVIDIA H100 80GB HBM3, compute capability 9.0)"


@pytest.mark.parametrize(
    ("visible", "problem"),
    [("7", "CUDA_VISIBLE_DEVICES is '7', which leaves no GPU; correct or unset it"), ("", None), ("-1", None)],
)
def test_gpus_that_a_variable_hides_are_a_problem_unless_all_are(
    library: Path, visible: str, problem: str | None
) -> None:
    environment = {**cuda_stub_environment(library), "CUDA_VISIBLE_DEVICES": visible}
    assert find_gpus_with(environment) == DriverState(problem=problem)


def test_empty_file_in_place_of_the_library_counts_as_no_driver(tmp_path: Path) -> None:
    # Images that are saved from a container with GPUs keep empty files where the driver was mounted.
    library = tmp_path / "libcuda.so.1"
    library.touch()
    assert find_gpus_with(cuda_stub_environment(library, H100)) == DriverState()


@pytest.mark.parametrize(("code", "name"), [(803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"), (12345, "unknown error")])
def test_driver_that_fails_is_a_problem_with_its_fix(library: Path, code: int, name: str) -> None:
    state = find_gpus_with(cuda_stub_environment(library, H100, init=code))
    fix = "check that nvidia-smi lists the GPUs, or restart the machine"
    assert state == DriverState(problem=f"{UNUSABLE}{name} ({code}); {fix}")
