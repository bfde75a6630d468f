"""Which packages have code for a GPU, and whether the installed ones can drive it."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from cuda_stub import H100, build_cuda_stub, cuda_stub_environment

from crossfade.trainer.model.engines.cuda_driver import Capability, CudaVersion, GpuInfo
from crossfade.trainer.model.engines.gpu_code import (
    MXNET_WHEELS,
    TORCH_WHEELS,
    has_code,
    mxnet_reason,
    mxnet_variant,
    torch_reason,
)

CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
"""What ``torch.cuda.get_arch_list()`` returns in PyTorch 2.13.0 with CUDA 13.0."""
CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")

INSTALL_TORCH = "install PyTorch with pip install 'crossfade[torch]'"
INSTALL_TORCH_2_10 = "install PyTorch with pip install 'torch==2.10.*'"
OLD_DRIVER = "the NVIDIA driver supports CUDA up to 12.8"
ON_CPU = "set train.device to 'cpu', since no package of MXNet or PyTorch supports this GPU with this driver"


def gpu(major: int, minor: int, cuda_version: CudaVersion = (13, 0)) -> GpuInfo:
    return GpuInfo(0, "NVIDIA GPU", (major, minor), 16 << 30, cuda_version)


def install_mxnet(variant: str, requirement: str) -> str:
    return f"install MXNet for this GPU with {requirement}, or use the image of variant {variant} (docs/docker.md)"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of installed packages, the only one in which packages are found."""
    without_packages = [entry for entry in sys.path if "-packages" not in entry]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *without_packages])
    for name in ("mxnet", "torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def install(site: Path, module: str, **packages: str) -> None:
    """Write an empty ``module`` and the metadata of ``packages``, with their versions, as pip does."""
    (site / module).mkdir()
    (site / module / "__init__.py").touch()
    for name, version in packages.items():
        metadata = site / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")


def stand_in_for_torch(monkeypatch: pytest.MonkeyPatch, cuda: str | None, codes: tuple[str, ...]) -> None:
    """Replace PyTorch by a build with ``cuda`` and ``codes`` that finds a GPU."""
    torch = ModuleType("torch")
    torch.__spec__ = ModuleSpec("torch", None)
    torch.__dict__.update(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(is_available=lambda: True, get_arch_list=lambda: list(codes)),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)


@pytest.mark.parametrize(
    ("codes", "capability", "expected"),
    [
        (CU130, (7, 5), True),
        (CU130, (8, 9), True),
        (CU130, (9, 0), True),
        (CU130, (10, 3), True),
        (CU130, (12, 1), True),
        (CU130, (7, 0), False),
        (CU130, (11, 0), False),
        (CU130, (13, 0), True),
        (CU130[:-1], (13, 0), False),
        (CU126, (5, 2), True),
        (CU126, (7, 2), True),
        (CU126, (3, 7), False),
        (CU126, (12, 0), False),
        (("sm_86",), (8, 0), False),
        (("sm_90a",), (9, 0), True),
        (("sm_100a",), (10, 3), False),
        (("sm_100f",), (10, 3), True),
        (("compute_90a",), (10, 0), False),
        (("compute_100f",), (12, 0), False),
        (("compute_60",), (6, 0), True),
        (("gfx90a",), (9, 0), False),
        ((), (9, 0), False),
    ],
)
def test_code_runs_on_gpus_of_its_major_capability_and_ptx_on_newer_ones(
    codes: tuple[str, ...], capability: Capability, expected: bool
) -> None:
    assert has_code(codes, capability) is expected


@pytest.mark.parametrize(
    ("capability", "variant"),
    [
        ((3, 7), "cu90"),
        ((5, 2), "cu112"),
        ((7, 0), "cu112"),
        ((7, 5), "cu112"),
        ((8, 9), "cu112"),
        ((9, 0), None),
        ((12, 0), None),
    ],
)
def test_newest_mxnet_with_code_for_the_gpu_is_chosen(capability: Capability, variant: str | None) -> None:
    assert mxnet_variant(capability) == variant


def test_names_of_code_in_the_tables_are_understood() -> None:
    for wheel in (*MXNET_WHEELS.values(), *TORCH_WHEELS):
        for code in wheel.codes:
            assert has_code([code], (int(code[3:-1]), int(code[-1])))


@pytest.mark.parametrize(
    ("packages", "found", "reason"),
    [
        ({}, gpu(7, 0), "MXNet is not installed; " + install_mxnet("cu112", "pip install 'mxnet-cu112==1.9.1'")),
        ({}, gpu(3, 7), "MXNet is not installed; " + install_mxnet("cu90", "pip install 'mxnet-cu90==1.6.0.post0'")),
        ({}, gpu(9, 0), f"MXNet is not installed; {INSTALL_TORCH}"),
        ({"mxnet": "1.9.1"}, gpu(9, 0), f"the installed mxnet 1.9.1 is the CPU package; {INSTALL_TORCH}"),
        (
            {"mxnet_cu112": "1.9.1"},
            gpu(3, 7),
            "the installed mxnet-cu112 1.9.1 has code for the compute capabilities 5.0, 6.0, 7.0, 8.0, 8.6, none of "
            "which runs on this GPU; "
            + install_mxnet("cu90", "pip uninstall mxnet-cu112 && pip install 'mxnet-cu90==1.6.0.post0'"),
        ),
        (
            {"mxnet_cu112": "1.9.1"},
            gpu(8, 0, (10, 1)),
            "the installed mxnet-cu112 1.9.1 is built with CUDA 11.2, but the NVIDIA driver supports CUDA up to 10.1; "
            f"update the driver to 450 or newer, or {ON_CPU}",
        ),
        ({"mxnet_cu112": "1.9.1"}, gpu(7, 5, (11, 0)), None),
        ({"mxnet_cu90": "1.6.0.post0"}, gpu(3, 7, (11, 4)), None),
        ({"mxnet_cu102": "1.9.1"}, gpu(7, 5), None),
    ],
)
def test_mxnet_drives_a_gpu_or_the_reason_has_the_package_to_install(
    site: Path, packages: dict[str, str], found: GpuInfo, reason: str | None
) -> None:
    if packages:
        install(site, "mxnet", **packages)
    assert mxnet_reason(found) == reason
    assert "mxnet" not in sys.modules


@pytest.mark.parametrize(
    ("found", "fix"),
    [
        (gpu(9, 0), INSTALL_TORCH),
        (gpu(9, 0, (12, 2)), INSTALL_TORCH_2_10),
        (gpu(7, 0), INSTALL_TORCH_2_10),
        (gpu(3, 7, (11, 4)), install_mxnet("cu90", "pip install 'mxnet-cu90==1.6.0.post0'")),
    ],
)
def test_missing_torch_gives_the_package_that_drives_the_gpu(site: Path, found: GpuInfo, fix: str) -> None:
    assert torch_reason(found) == f"PyTorch is not installed; {fix}"


@pytest.mark.parametrize(
    ("cuda", "codes", "found", "reason"),
    [
        ("13.0", CU130, gpu(9, 0), None),
        ("12.6", CU126, gpu(7, 0, (12, 2)), None),
        (
            None,
            (),
            gpu(9, 0),
            "is a build for CPUs only, whereas PyPI's default package for Linux is built with CUDA; install PyTorch "
            "with pip uninstall torch && pip install 'crossfade[torch]'",
        ),
        (
            None,
            (),
            gpu(3, 7, (11, 4)),
            "is a build for CPUs only; "
            + install_mxnet("cu90", "pip uninstall mxnet && pip install 'mxnet-cu90==1.6.0.post0'"),
        ),
        (
            "13.0",
            CU130,
            gpu(7, 0, (12, 8)),
            "has code for the compute capabilities 7.5, 8.0, 8.6, 9.0, 10.0, 12.0, none of which runs on this GPU; "
            + INSTALL_TORCH_2_10,
        ),
        (
            "13.0",
            CU130,
            gpu(9, 0, (12, 8)),
            f"is built with CUDA 13.0, but {OLD_DRIVER}; update the driver to 580 or newer, or {INSTALL_TORCH_2_10}",
        ),
    ],
)
def test_torch_drives_a_gpu_or_the_reason_has_the_fix(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    codes: tuple[str, ...],
    found: GpuInfo,
    reason: str | None,
) -> None:
    install(site, "mxnet", mxnet="1.9.1")
    stand_in_for_torch(monkeypatch, cuda, codes)
    assert torch_reason(found) == (reason and f"the installed PyTorch 2.13.0 {reason}")


@pytest.mark.slow
def test_installed_packages_are_judged_for_a_gpu_that_the_driver_reports(tmp_path: Path) -> None:
    environment = cuda_stub_environment(build_cuda_stub(tmp_path), H100)
    code = """
from crossfade.trainer.model.engines.cuda_driver import find_gpus
from crossfade.trainer.model.engines.gpu_code import mxnet_reason, torch_reason
[gpu] = find_gpus().gpus
print(f"{gpu} cannot be used: {mxnet_reason(gpu)}")
print(f"{gpu} cannot be used: {torch_reason(gpu)}")
"""
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    with_mxnet, with_torch = result.stdout.splitlines()
    start = "gpu:0 (NVIDIA H100 80GB HBM3, compute capability 9.0) cannot be used: "
    # No package of MXNet drives this GPU, and no build of PyTorch the stand-in.
    assert (with_mxnet[: len(start)], with_mxnet[-len(INSTALL_TORCH) :]) == (start, INSTALL_TORCH)
    assert with_torch.startswith((f"{start}the installed PyTorch ", f"{start}PyTorch is not installed; "))
    assert result.stderr == ""
