"""Which packages of MXNet and PyTorch contain code for a GPU, and whether those installed can drive it.

    for gpu in find_gpus().gpus:
        reason = mxnet_reason(gpu)
        if reason:
            print(f"{gpu} cannot be used: {reason}")

A package contains machine code for some compute capabilities ("sm_70"), and possibly intermediate code, PTX
("compute_70"), which the driver translates for newer GPUs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from crossfade.trainer.model.engines.cuda_driver import Capability, CudaVersion, GpuInfo, format_version

MXNetVariant = Literal["cu112", "cu90"]


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI: how pip installs it, the CUDA version it is built with, and its code."""

    requirement: str
    cuda_version: CudaVersion
    codes: tuple[str, ...]

    def can_drive(self, gpu: GpuInfo) -> bool:
        """Return whether the package has code for ``gpu``, and the driver supports its CUDA version."""
        return _reason(gpu, self.cuda_version, self.codes) is None


MXNET_WHEELS: dict[MXNetVariant, Wheel] = {
    "cu112": Wheel("mxnet-cu112==1.9.1", (11, 2), ("sm_50", "sm_60", "sm_70", "sm_80", "sm_86")),
    "cu90": Wheel("mxnet-cu90==1.6.0.post0", (9, 0), ("sm_30", "sm_35", "sm_50", "sm_52", "sm_60", "sm_61", "sm_70")),
}
"""The packages of MXNet that Crossfade's images have, the newest first: ``config/distribution/linux_cu112.cmake`` and
``Makefile`` of https://github.com/apache/mxnet.

The PTX of mxnet-cu90, for 7.0, is left out: cuBLAS and cuDNN of CUDA 9 are not made for the GPUs that would need it.
"""

TORCH_WHEELS = (
    Wheel("crossfade[torch]", (13, 0), ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")),
    Wheel("torch==2.10.*", (12, 8), ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")),
)
"""The packages of PyTorch on PyPI for Linux on x86-64, the newest first.

2.9 and 2.10 are built with CUDA 12.8, 2.11 to 2.14 with 13.0, and 2.15 with 13.2, as their requirements of
nvidia-cuda-runtime say. The compute capabilities are those of
https://github.com/pytorch/pytorch/blob/main/RELEASE.md#pytorch-cuda-support-matrix, and in the output of
``torch.cuda.get_arch_list()`` in https://github.com/pytorch/pytorch/issues/182250. 2.13.0 also has PTX for 12.0,
the other releases have none (https://github.com/pytorch/pytorch/pull/188914).
"""

MIN_DRIVERS = {9: "384.81", 11: "450", 12: "525", 13: "580"}
"""The oldest NVIDIA driver by major CUDA version. From CUDA 11 on, the driver of x.0 suffices for every x.y
(https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html), although x.y comes with a newer
one, as 12.8 with 570 (https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/index.html).
"""

_CODE = re.compile(r"(sm|compute)_([0-9]+)([0-9])")
_MXNET = re.compile(r"mxnet(-mkl|-native|-cu[0-9]+(mkl)?)?")
_NO_PACKAGE = "set train.device to 'cpu', since no package of MXNet or PyTorch supports this GPU with this driver"


def has_code(codes: Iterable[str], capability: Capability) -> bool:
    """Return whether GPUs of ``capability`` can execute one of ``codes``, as ``torch.cuda.get_arch_list()`` names them.

    Machine code for X.y runs on GPUs of X.z with z ≥ y, and PTX for X.y on those of X.y and newer
    (https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#binary-compatibility). Other names, such as of
    code for one GPU alone, are left out.
    """
    matches = (match for match in map(_CODE.fullmatch, codes) if match)
    built = ((match[1], (int(match[2]), int(match[3]))) for match in matches)
    return any(code <= capability and (kind == "compute" or code[0] == capability[0]) for kind, code in built)


def mxnet_variant(capability: Capability) -> MXNetVariant | None:
    """Return the newest of ``MXNET_WHEELS`` that has code for ``capability``; None if there is none."""
    return next((variant for variant, wheel in MXNET_WHEELS.items() if has_code(wheel.codes, capability)), None)


def mxnet_reason(gpu: GpuInfo) -> str | None:
    """Return why the installed MXNet cannot drive ``gpu`` and what to install, or None if it can.

    MXNet is not imported. A package for CUDA that is not in ``MXNET_WHEELS``, or an MXNet that pip did not install,
    counts as one that can: if it has no code for the GPU, its first operation fails.
    """
    fix = _install(gpu, [*MXNET_WHEELS.values(), *TORCH_WHEELS])
    if importlib.util.find_spec("mxnet") is None:
        return f"MXNet is not installed; {fix}"
    names = {re.sub(r"[-_.]+", "-", str(item.name)).lower() for item in importlib.metadata.distributions()}
    found = " and ".join(sorted(filter(_MXNET.fullmatch, names)))
    if found and "-cu" not in found:
        return f"the installed {found} is the CPU package; {fix}"
    for wheel in MXNET_WHEELS.values():
        reason = _reason(gpu, wheel.cuda_version, wheel.codes)
        if wheel.requirement.partition("==")[0] == found and reason is not None:
            return f"the installed {found} {reason}; {fix}"
    return None


def torch_reason(gpu: GpuInfo) -> str | None:
    """Return why the installed PyTorch cannot drive ``gpu`` and what to install, or None if it can.

    PyTorch, if it is installed, is imported and initializes CUDA.
    """
    fix = _install(gpu, [*TORCH_WHEELS, *MXNET_WHEELS.values()])
    if importlib.util.find_spec("torch") is None:
        return f"PyTorch is not installed; {fix}"
    try:
        import torch
    except (ImportError, OSError) as error:  # of a library that it needs
        return f"PyTorch is installed, but cannot be imported: {error}; install it again"
    found = f"the installed PyTorch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{found} is a build for CPUs only; {fix}"
    major, minor = torch.version.cuda.split(".")[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # by which it says why it can use none
        is_available, codes = torch.cuda.is_available(), tuple(torch.cuda.get_arch_list())
    if reason := _reason(gpu, (int(major), int(minor)), codes):
        return f"{found} {reason}; {fix}"
    return None if is_available else f"{found} finds no usable GPU; check that nvidia-smi lists the GPU"


def _reason(gpu: GpuInfo, cuda_version: CudaVersion, codes: tuple[str, ...]) -> str | None:
    """Return why a package cannot drive ``gpu``. Its code is judged first, since no driver makes up for it.

    ``codes`` is empty if they are unknown, as in versions of PyTorch that list them only if they find a GPU.
    """
    if codes and not has_code(codes, gpu.capability):
        return f"has code for {', '.join(codes)}, none of which runs on this GPU"
    driver = gpu.cuda_version
    if driver >= cuda_version if cuda_version < (11, 0) else driver[0] >= cuda_version[0]:
        return None
    return (
        f"is built with CUDA {format_version(cuda_version)}, but the NVIDIA driver supports CUDA up to "
        f"{format_version(driver)}, so update the driver"
    )


def _install(gpu: GpuInfo, wheels: Sequence[Wheel]) -> str:
    """Return how to install the first of ``wheels`` that can drive ``gpu``."""
    found = next((wheel.requirement for wheel in wheels if wheel.can_drive(gpu)), None)
    return _NO_PACKAGE if found is None else f"pip install '{found}'"
