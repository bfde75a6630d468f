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
from typing import Any, Literal

from crossfade.trainer.model.engines.cuda_driver import GpuInfo, Version, format_version

MXNetVariant = Literal["cu112", "cu90"]


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI: how pip installs it, the CUDA version it is built with, and its code."""

    requirement: str
    cuda_version: Version
    codes: tuple[str, ...]

    def can_drive(self, gpu: GpuInfo) -> bool:
        """Return whether the package has code for ``gpu``, and the driver supports its CUDA version."""
        return has_code(self.codes, gpu.capability) and supports_cuda(gpu.cuda_version, self.cuda_version)


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
nvidia-cuda-runtime say. The GPUs are those of https://github.com/pytorch/pytorch/blob/main/RELEASE.md#release-compatibility-matrix
and of https://github.com/pytorch/pytorch/issues/182250, which has the output of ``torch.cuda.get_arch_list()``. 2.13.0
has PTX for 12.0 as well, the others have none (https://github.com/pytorch/pytorch/pull/188914).
"""

MIN_DRIVERS = {9: "384.81", 11: "450", 12: "525", 13: "580"}
"""The oldest NVIDIA driver by major CUDA version: since CUDA 11, the driver of the first minor version suffices for all
(https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html). That of the same minor version is
460 for 11.2, 570 for 12.8, 580 for 13.0 (https://docs.nvidia.com/cuda/cuda-toolkit-release-notes).
"""

_CODE = re.compile(r"(sm|compute)_([0-9]+)([0-9])([af]?)")
_MXNET = re.compile(r"mxnet(-mkl|-native|-(?P<cuda>cu[0-9]+)(mkl)?)?")


def has_code(codes: Iterable[str], capability: Version) -> bool:
    """Return whether a GPU of ``capability`` can execute one of ``codes``, as ``torch.cuda.get_arch_list()`` names them.

    Machine code for X.y runs on GPUs of X.z with z ≥ y, and PTX for X.y on those of X.y and newer
    (https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#binary-compatibility). Code with the suffix a runs
    on its own capability only, and with the suffix f on X.z, PTX too.
    """
    return any(_executes(match, capability) for match in map(_CODE.fullmatch, codes) if match)


def _executes(code: re.Match[str], capability: Version) -> bool:
    kind, major, minor, suffix = code.groups()
    built = int(major), int(minor)
    if suffix == "a":
        return built == capability
    return built <= capability and (built[0] == capability[0] or (kind == "compute" and not suffix))


def supports_cuda(driver: Version, package: Version) -> bool:
    """Return whether a driver for CUDA ``driver`` runs a package that is built with CUDA ``package`` (MIN_DRIVERS)."""
    return driver >= package if package < (11, 0) else driver[0] >= package[0]


def mxnet_variant(capability: Version) -> MXNetVariant | None:
    """Return the newest of ``MXNET_WHEELS`` that has code for ``capability``; None if there is none."""
    return next((name for name, wheel in MXNET_WHEELS.items() if has_code(wheel.codes, capability)), None)


def mxnet_reason(gpu: GpuInfo) -> str | None:
    """Return why the installed MXNet cannot drive ``gpu`` and what to install, or None if it can.

    MXNet is not imported. Of packages that are not in ``MXNET_WHEELS``, only those for CPUs are rejected: if another
    has no code for the GPU, MXNet fails at its first operation.
    """
    fix = _mxnet_fix(gpu)
    if importlib.util.find_spec("mxnet") is None:
        return f"MXNet is not installed; {fix}"
    packages = _mxnet_packages()
    found = " and ".join(f"{name} {version}" for name, version in packages.items())
    if len(packages) > 1:
        return f"{found} are installed, whose files overwrite each other; uninstall them, then {fix}"
    for name in packages:
        match = _MXNET.fullmatch(name)
        cuda = match["cuda"] if match else None
        if cuda is None:
            return f"the installed {found} is the CPU package; {fix}"
        wheel = next((wheel for variant, wheel in MXNET_WHEELS.items() if variant == cuda), None)
        if wheel is not None:
            return _wheel_reason(gpu, wheel, f"the installed {found}", fix)
    return None


def torch_reason(gpu: GpuInfo) -> str | None:
    """Return why the installed PyTorch cannot drive ``gpu`` and what to install, or None if it can.

    PyTorch is imported if it is installed, and it initializes CUDA if nothing speaks against it.
    """
    fix = _torch_fix(gpu)
    if importlib.util.find_spec("torch") is None:
        return f"PyTorch is not installed; {fix}"
    import torch

    found = f"the installed PyTorch {torch.__version__}"
    if torch.version.cuda is None:
        return (
            f"{found} is a build for CPUs only, unlike PyPI's default package for Linux, which is built with CUDA; "
            f"uninstall it, then {fix}"
        )
    major, minor = torch.version.cuda.split(".")[:2]
    available, codes, problem = _asked(torch)
    reason = _wheel_reason(gpu, Wheel("torch", (int(major), int(minor)), codes), found, fix)
    if reason is None and not available:
        return f"{found} finds no usable GPU: {problem}; check that nvidia-smi lists the GPU"
    return reason


def _asked(torch: Any) -> tuple[bool, tuple[str, ...], str]:
    """Return whether PyTorch can use a GPU, its code, and the warning by which it explains that it cannot."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available, codes = torch.cuda.is_available(), tuple(torch.cuda.get_arch_list())
    messages = [str(warning.message).partition(" (Triggered")[0].rstrip(".") for warning in caught]
    return available, codes, messages[0] if messages else "torch.cuda.is_available() is False"


def _wheel_reason(gpu: GpuInfo, wheel: Wheel, found: str, fix: str) -> str | None:
    """Return why a package cannot drive ``gpu``: because of its code, which no driver changes, or of its CUDA version.

    Versions of PyTorch that find no GPU may not list their code; then it is not judged.
    """
    if wheel.codes and not has_code(wheel.codes, gpu.capability):
        return f"{found} has code for {', '.join(wheel.codes)} only, which this GPU cannot execute; {fix}"
    if not supports_cuda(gpu.cuda_version, wheel.cuda_version):
        needed = MIN_DRIVERS.get(wheel.cuda_version[0])
        return (
            f"{found} is built with CUDA {format_version(wheel.cuda_version)}, but the NVIDIA driver supports CUDA up "
            f"to {format_version(gpu.cuda_version)}; update the driver{f' to {needed} or newer' if needed else ''}, "
            f"or {fix}"
        )
    return None


def _mxnet_packages() -> dict[str, str]:
    """Return the versions of the installed packages that contain the module ``mxnet``, by name."""
    names = ((re.sub(r"[-_.]+", "-", str(item.name)).lower(), item) for item in importlib.metadata.distributions())
    return {name: item.version for name, item in names if _MXNET.fullmatch(name)}


def _mxnet_fix(gpu: GpuInfo) -> str:
    return _install_mxnet(gpu) or _install_torch(gpu) or _NO_PACKAGE


def _torch_fix(gpu: GpuInfo) -> str:
    return _install_torch(gpu) or _install_mxnet(gpu) or _NO_PACKAGE


_NO_PACKAGE = "no package of MXNet or PyTorch supports it with this driver, so set train.device to 'cpu'"


def _install_mxnet(gpu: GpuInfo) -> str | None:
    for variant, wheel in MXNET_WHEELS.items():
        if wheel.can_drive(gpu):
            return (
                f"install MXNet for this GPU with pip install {wheel.requirement}, or use the image of variant "
                f"{variant} (docs/docker.md)"
            )
    return None


def _install_torch(gpu: GpuInfo) -> str | None:
    for wheel in TORCH_WHEELS:
        if wheel.can_drive(gpu):
            return f"install PyTorch with pip install '{wheel.requirement}'"
    return None
