"""Which engine and devices a worker uses: on machines whose driver is a stand-in, and where engines can drive GPUs."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cuda_stub import K80, build_cuda_stub, cuda_stub_environment

from crossfade.base.errors import InputError
from crossfade.trainer.config.schema import TrainConfig
from crossfade.trainer.model.engines import engine
from crossfade.trainer.model.engines.cuda_driver import DriverState, GpuInfo
from crossfade.trainer.model.engines.engine import LOCAL_RANK_VARIABLE, EngineChoice, choose_engine, local_rank

pytestmark = pytest.mark.slow

CHOOSE = """
import json, sys
from crossfade.base.errors import InputError
from crossfade.trainer.config.schema import TrainConfig
from crossfade.trainer.model.engines.engine import choose_engine

for values in json.loads(sys.argv[1]):
    try:
        choice = choose_engine(TrainConfig(**values))
        print(json.dumps([choice.engine, choice.device, choice.notes]))
    except InputError as error:
        print(json.dumps(str(error)))
"""
OLD_GPU = "gpu:0 (Tesla K80, compute capability 3.7)"
OLD_GPU_PACKAGE = "pip install 'mxnet-cu90==1.6.0.post0'"
"""What drives it. No release of PyTorch that Crossfade works with has code for it."""
ON_CPU = ["cpu", "cpu", []]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cuda_stub(tmp_path_factory.mktemp("cuda"))


def choices(environment: Mapping[str, str], *jobs: Mapping[str, Any]) -> list[Any]:
    """Return what is chosen for sections ``train`` in another process, or the message of the error."""
    command = [sys.executable, "-c", CHOOSE, json.dumps(jobs)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_machine_without_gpu_computes_on_the_cpu_and_refuses_gpus(library: Path) -> None:
    environment = cuda_stub_environment(library)
    auto, by_mxnet, gpu = choices(environment, {}, {"engine": "mxnet"}, {"device": "gpu"})
    assert auto == ON_CPU
    assert by_mxnet == ["mxnet", "cpu", []]
    reason = "but no GPU is found here (NVIDIA has no driver or no device here): set train.device to cpu or auto"
    assert gpu == f"train.device is gpu, {reason}"


def test_gpu_that_no_installed_engine_can_drive_is_noted_or_refused_with_reason_and_package(library: Path) -> None:
    environment = cuda_stub_environment(library, K80)
    auto, cpu, by_torch, gpu, fourth = choices(
        environment, {}, {"device": "cpu"}, {"engine": "torch"}, {"device": "gpu"}, {"device": "gpu:3"}
    )
    engine, device, [note] = auto
    assert (engine, device) == ("cpu", "cpu")
    assert note.startswith(f"{OLD_GPU} cannot be used: ")
    assert "PyTorch" in note
    assert OLD_GPU_PACKAGE in note
    assert cpu == ON_CPU
    assert by_torch == ["torch", "cpu", [note]]
    assert gpu == f"train.device is gpu: {note}"
    assert fourth == f"train.device is gpu:3, but the GPUs of this machine are {OLD_GPU}"


def test_driver_that_fails_is_noted_with_what_to_check(library: Path) -> None:
    [(engine, device, [note])] = choices(cuda_stub_environment(library, K80, init=803), {})
    assert (engine, device) == ("cpu", "cpu")
    assert "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803); check that nvidia-smi lists the GPUs" in note
    hidden = {**cuda_stub_environment(library), "CUDA_VISIBLE_DEVICES": "7"}
    assert choices(hidden, {})[0][2] == ["CUDA_VISIBLE_DEVICES is '7', which leaves no GPU; correct or unset it"]


GPUS = [GpuInfo(index, f"GPU {index}", (8, 0), 1 << 34) for index in range(3)]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets the number of GPUs, and those that PyTorch and MXNet can drive."""

    def set_up(gpus: int, *, torch: Sequence[int] = (), mxnet: Sequence[int] = ()) -> None:
        monkeypatch.setattr(engine, "find_gpus", lambda: DriverState(tuple(GPUS[:gpus])))
        for name, driven in (("torch", torch), ("mxnet", mxnet)):
            reason = f"{name} is too old"
            monkeypatch.setitem(
                engine._REASONS, name, lambda gpu, driven=driven, reason=reason: None if gpu.index in driven else reason
            )

    return set_up


def chosen(rank: int = 0, workers: int = 1, **train: Any) -> EngineChoice:
    return choose_engine(TrainConfig(**train), rank, workers)


@pytest.mark.parametrize("device", ["auto", "gpu", "gpu:0"])
def test_first_engine_that_can_drive_the_gpu_is_chosen(machine: Any, device: str) -> None:
    machine(1, torch=[0], mxnet=[0])
    assert chosen(device=device) == EngineChoice("torch", "gpu:0")
    assert chosen(device=device).on_gpu
    assert chosen(device=device, engine="mxnet") == EngineChoice("mxnet", "gpu:0")
    machine(1, mxnet=[0])
    assert chosen(device=device) == EngineChoice("mxnet", "gpu:0")


def test_engine_by_name_is_never_replaced(machine: Any) -> None:
    machine(1, mxnet=[0])
    assert chosen(engine="torch") == EngineChoice(
        "torch", "cpu", ("gpu:0 (GPU 0, compute capability 8.0) cannot be used: torch is too old",)
    )
    assert not chosen(engine="torch").on_gpu
    assert chosen(engine="cpu") == EngineChoice("cpu", "cpu")
    with pytest.raises(InputError, match=r"train.device is gpu: gpu:0 .* cannot be used: torch is too old"):
        chosen(engine="torch", device="gpu")


def test_rank_on_the_host_is_that_of_the_agent_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOCAL_RANK_VARIABLE, raising=False)
    assert local_rank(5) == 5
    monkeypatch.setenv(LOCAL_RANK_VARIABLE, "1")
    assert local_rank(5) == 1


def test_single_worker_learns_how_to_use_idle_gpus(machine: Any) -> None:
    machine(3, torch=[0, 1, 2])
    assert chosen().notes == ("of 3 GPUs, a worker uses one: for all of them, set cluster.workers to 3",)
    assert chosen(device="gpu").notes == ()


def test_gpus_that_the_engine_cannot_drive_are_passed_over(machine: Any) -> None:
    machine(3, torch=[1, 2])
    reason = "gpu:0 (GPU 0, compute capability 8.0) cannot be used: torch is too old"
    assert [chosen(rank, 2) for rank in (0, 1)] == [
        EngineChoice("torch", "gpu:1", (reason,)),
        EngineChoice("torch", "gpu:2", (reason,)),
    ]
    assert chosen(device="gpu").device == "gpu:1"
    with pytest.raises(InputError) as caught:
        chosen(device="gpu:0")
    assert str(caught.value) == f"train.device is gpu:0: {reason}"
