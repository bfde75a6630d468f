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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from crossfade.trainer.model.engines.cuda_driver import Capability, GpuInfo

MXNetVariant = Literal["cu112", "cu90"]


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI: how pip installs it, and its code."""

    requirement: str
    codes: tuple[str, ...]


MXNET_WHEELS: dict[MXNetVariant, Wheel] = {
    "cu112": Wheel("mxnet-cu112==1.9.1", ("sm_50", "sm_60", "sm_70", "sm_80", "sm_86")),
    "cu90": Wheel("mxnet-cu90==1.6.0.post0", ("sm_30", "sm_35", "sm_50", "sm_52", "sm_60", "sm_61", "sm_70")),
}
"""The packages of MXNet that Crossfade's images have, the newest first: ``config/distribution/linux_cu112.cmake`` and
``Makefile`` of https://github.com/apache/mxnet.

The PTX of mxnet-cu90, for 7.0, is left out: cuBLAS and cuDNN of CUDA 9 are not made for the GPUs that would need it.
"""

TORCH_WHEEL = Wheel("crossfade[torch]", ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"))
"""The package of PyTorch on PyPI for Linux on x86-64; its compute capabilities are those of
https://github.com/pytorch/pytorch/blob/main/RELEASE.md#pytorch-cuda-support-matrix.
"""

_CODE = re.compile(r"(sm|compute)_([0-9]+)([0-9])")
_MXNET = re.compile(r"mxnet(-mkl|-native|-cu[0-9]+(mkl)?)?")


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
    if importlib.util.find_spec("mxnet") is None:
        return f"MXNet is not installed; {_install(gpu)}"
    names = {re.sub(r"[-_.]+", "-", str(item.name)).lower() for item in importlib.metadata.distributions()}
    found = " and ".join(sorted(filter(_MXNET.fullmatch, names)))
    if found and "-cu" not in found:
        return f"the installed {found} is the CPU package; {_install(gpu)}"
    codes = next((wheel.codes for wheel in MXNET_WHEELS.values() if wheel.requirement.startswith(f"{found}==")), ())
    return _without_code(gpu, f"the installed {found}", codes)


def torch_reason(gpu: GpuInfo) -> str | None:
    """Return why the installed PyTorch cannot drive ``gpu`` and what to install, or None if it can.

    PyTorch, if it is installed, is imported and initializes CUDA.
    """
    if importlib.util.find_spec("torch") is None:
        return f"PyTorch is not installed; {_install(gpu)}"
    try:
        import torch
    except (ImportError, OSError) as error:  # of a library that it needs
        return f"PyTorch is installed, but cannot be imported: {error}; install it again"
    found = f"the installed PyTorch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{found} is a build for CPUs only; {_install(gpu)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # by which it says why it can use none
        is_available, codes = torch.cuda.is_available(), tuple(torch.cuda.get_arch_list())
    if reason := _without_code(gpu, found, codes):
        return reason
    if is_available:
        return None
    too_old = "cannot use the NVIDIA driver, which may be too old for it; update the driver"
    return f"{found}, for CUDA {torch.version.cuda}, {too_old}"


def _without_code(gpu: GpuInfo, package: str, codes: tuple[str, ...]) -> str | None:
    """Return that a package has no code for ``gpu``; None if it has, or if its ``codes``, then empty, are unknown."""
    if not codes or has_code(codes, gpu.capability):
        return None
    return f"{package} has code for {', '.join(codes)}, none of which runs on this GPU; {_install(gpu)}"


def _install(gpu: GpuInfo) -> str:
    """Return how to install a package that has code for ``gpu``."""
    wheels = TORCH_WHEEL, *MXNET_WHEELS.values()
    found = next((wheel.requirement for wheel in wheels if has_code(wheel.codes, gpu.capability)), None)
    return "set train.device to 'cpu': no package has code for it" if found is None else f"pip install '{found}'"
