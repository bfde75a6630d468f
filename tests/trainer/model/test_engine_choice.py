"""Which engine and devices a worker uses, by the GPUs that the driver reports and the engines that can drive them."""

from collections.abc import Sequence
from typing import Any

import pytest

from crossfade.base.errors import InputError
from crossfade.trainer.config.schema import TrainConfig
from crossfade.trainer.model.engines import cuda_driver, engine
from crossfade.trainer.model.engines.cuda_driver import DriverState, GpuInfo
from crossfade.trainer.model.engines.engine import LOCAL_RANK_VARIABLE, EngineChoice, choose_engine, local_rank

K80 = GpuInfo(0, "Tesla K80", (3, 7), 11_996_954_624)
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


def test_machine_without_gpu_computes_on_the_cpu_and_refuses_gpus(machine: Any) -> None:
    machine(0)
    assert chosen() == EngineChoice("cpu", "cpu")
    assert chosen(engine="mxnet") == EngineChoice("mxnet", "cpu")
    with pytest.raises(InputError, match=r"train.device is gpu, but no GPU is found here .NVIDIA has no driver"):
        chosen(device="gpu")


def test_gpu_that_no_engine_can_drive_is_noted_or_refused_with_reason_and_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "find_gpus", lambda: DriverState((K80,)))
    auto = chosen()
    assert (auto.engine, auto.device) == ("cpu", "cpu")
    [note] = auto.notes
    assert note.startswith("gpu:0 (Tesla K80, compute capability 3.7) cannot be used: ")
    assert "PyTorch" in note
    assert "pip install 'mxnet-cu90==1.6.0.post0'" in note
    assert chosen(device="cpu") == EngineChoice("cpu", "cpu")
    assert chosen(engine="torch") == EngineChoice("torch", "cpu", (note,))
    with pytest.raises(InputError) as refused:
        chosen(device="gpu")
    assert str(refused.value) == f"train.device is gpu: {note}"
    with pytest.raises(InputError, match=r"train.device is gpu:3, but the GPUs of this machine are gpu:0 .Tesla"):
        chosen(device="gpu:3")


def test_driver_that_fails_and_hidden_gpus_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_gpus", lambda: DriverState(problem="cuInit returns 803"))
    assert chosen() == EngineChoice("cpu", "cpu", ("cuInit returns 803",))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert cuda_driver._hidden_devices() == "CUDA_VISIBLE_DEVICES is '7', which leaves no GPU; correct or unset it"


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
