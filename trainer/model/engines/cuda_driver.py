"""The GPUs of this machine, as NVIDIA's driver reports them.

    state = find_gpus()
    for gpu in state.gpus:
        print(gpu)                 # gpu:0 (NVIDIA H100 80GB HBM3, compute capability 9.0)
    if state.problem:
        print(state.problem)       # there may be GPUs, but the driver fails

The driver's library, libcuda.so.1, is on every machine and in every container that has a GPU. It needs no package,
and since it applies CUDA_VISIBLE_DEVICES, its indexes are those of PyTorch and MXNet.

A process that has initialized CUDA must not fork: cuInit fails in the child, also when PyTorch or MXNet calls it.
Crossfade starts its processes with exec (``subprocess``, or ``multiprocessing`` with spawn), so it may look for GPUs
before it starts them.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

Capability = tuple[int, int]

_LIBRARY = "libcuda.so.1"
_NO_DEVICE = 100
_CAPABILITY_ATTRIBUTES = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


@dataclass(frozen=True)
class GpuInfo:
    """A GPU of this machine."""

    index: int
    name: str
    capability: Capability
    memory_bytes: int

    def __str__(self) -> str:
        """Return the GPU as messages name it."""
        return f"gpu:{self.index} ({self.name}, compute capability {'.'.join(map(str, self.capability))})"


@dataclass(frozen=True)
class DriverState:
    """The GPUs of this machine, or a problem: why none can be used, although the driver is installed."""

    gpus: tuple[GpuInfo, ...] = ()
    problem: str | None = None


class _DriverError(Exception):
    """A function of the driver returned an error."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(function, code)
        self.function, self.code = function, code


def find_gpus() -> DriverState:
    """Return the GPUs of this machine that CUDA_VISIBLE_DEVICES includes: none if it has no GPU or no driver.

    A driver that fails raises nothing, since a machine whose GPUs are of no use can compute on its CPU; ``problem``
    describes the failure in one line.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return DriverState()
    try:
        _call(library, "cuInit", 0)
        count = _integer(library, "cuDeviceGetCount")
        return DriverState(tuple(_gpu(library, index) for index in range(count)))
    except _DriverError as error:
        if error.code == _NO_DEVICE:
            return DriverState(problem=_hidden_devices())
        return DriverState(problem=_problem(library, error))


def _gpu(library: ctypes.CDLL, index: int) -> GpuInfo:
    device = _integer(library, "cuDeviceGet", index)
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _call(library, "cuDeviceGetName", name, len(name), device)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    major, minor = (_integer(library, "cuDeviceGetAttribute", key, device) for key in _CAPABILITY_ATTRIBUTES)
    return GpuInfo(index, name.value.decode(errors="replace").strip(), (major, minor), memory.value)


def _integer(library: ctypes.CDLL, function: str, *arguments: int) -> int:
    """Return the integer that ``function`` writes to its first argument."""
    result = ctypes.c_int()
    _call(library, function, ctypes.byref(result), *arguments)
    return result.value


def _call(library: ctypes.CDLL, function: str, *arguments: Any) -> None:
    code = library[function](*arguments)
    if code != 0:
        raise _DriverError(function, code)


def _hidden_devices() -> str | None:
    """Return that CUDA_VISIBLE_DEVICES may have hidden the GPUs, unless it does so on purpose."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in {None, "", "-1"}:
        return None
    return f"CUDA_VISIBLE_DEVICES is '{visible}', which leaves no GPU; correct or unset it"


def _problem(library: ctypes.CDLL, error: _DriverError) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorName(error.code, ctypes.byref(text))  # writes NULL for a code that is newer than the library
    name = (text.value or b"unknown error").decode(errors="replace")
    return (
        f"the GPUs of this machine cannot be used: {error.function} of NVIDIA's driver, {_LIBRARY}, returns {name} "
        f"({error.code}); check that nvidia-smi lists the GPUs, or restart the machine"
    )
