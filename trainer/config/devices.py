"""The devices that a worker computes on, as ``train.device`` names them.

as_list("auto")                             # ["auto"]
as_list(["gpu:0", "gpu:1"])                 # ["gpu:0", "gpu:1"]
check_devices(["gpu:0", "cpu"])             # ValueError
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, WrapValidator


def _check_names(value: Any, validate: Callable[[Any], Any]) -> Any:
    """Describe what is expected in one message, rather than in one for each type."""
    try:
        return validate(value)
    except ValidationError:
        raise ValueError(
            f"expected auto, cpu, gpu, a GPU by number such as gpu:1, or a list of devices, but found {value!r:.100}"
        ) from None


_DeviceName = Annotated[str, Field(pattern=r"^(auto|cpu|gpu|gpu:(0|[1-9][0-9]?))$")]
_DeviceNames = Annotated[list[_DeviceName], Field(min_length=1, max_length=64)]
Devices = Annotated[_DeviceName | _DeviceNames, WrapValidator(_check_names)]
EngineName = Literal["auto", "cpu", "mxnet", "torch"]


def as_list(devices: str | Sequence[str]) -> list[str]:
    """Return the names of ``train.device``, which may be a single one."""
    return [devices] if isinstance(devices, str) else list(devices)


def on_gpu(devices: Sequence[str]) -> bool:
    """Return whether GPUs are requested by name."""
    return devices[0].startswith("gpu")


def check_devices(devices: Sequence[str]) -> None:
    """Check a list of devices.

    Raises:
        ValueError: it mixes CPU and GPU, or names a GPU twice, or has ``auto`` beside others.
    """
    if len(devices) == 1:
        return
    if "auto" in devices:
        raise ValueError(f"device is {', '.join(devices)}: expected 'auto' alone, or the devices without it")
    if len({name.partition(":")[0] for name in devices}) > 1:
        raise ValueError(
            f"device is {', '.join(devices)}: expected GPUs only, or CPUs only, since each gets an equal part"
        )
    gpus = ["gpu:0" if name == "gpu" else name for name in devices if name != "cpu"]
    if len(set(gpus)) < len(gpus):
        raise ValueError(f"device is {', '.join(devices)}: expected each GPU once")
