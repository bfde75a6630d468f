"""Which packages have code for a GPU, and whether the installed ones can drive it."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from crossfade.trainer.model.engines.cuda_driver import Capability, CudaVersion, GpuInfo
from crossfade.trainer.model.engines.gpu_code import (
    has_code,
    mxnet_reason,
    mxnet_variant,
    torch_reason,
)

CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
"""What ``torch.cuda.get_arch_list()`` returns in PyTorch 2.13.0 with CUDA 13.0."""
CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")

TORCH, TORCH_2_10 = "pip install 'crossfade[torch]'", "pip install 'torch==2.10.*'"
MXNET, OLD_MXNET = "pip install 'mxnet-cu112==1.9.1'", "pip install 'mxnet-cu90==1.6.0.post0'"
ON_CPU = "set train.device to 'cpu', since no package of MXNet or PyTorch supports this GPU with this driver"


def gpu(major: int, minor: int, cuda_version: CudaVersion = (13, 0)) -> GpuInfo:
    return GpuInfo(0, "NVIDIA GPU", (major, minor), 16 << 30, cuda_version)


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
        (CU130, (7, 0), False),
        (CU130, (11, 0), False),
        (CU130, (13, 0), True),
        (CU130[:-1], (13, 0), False),
        (CU126, (3, 7), False),
        (("sm_86",), (8, 0), False),
        (("sm_100a", "gfx90a"), (10, 3), False),
        ((), (9, 0), False),
    ],
)
def test_code_runs_on_gpus_of_its_major_capability_and_ptx_on_newer_ones(
    codes: tuple[str, ...], capability: Capability, expected: bool
) -> None:
    assert has_code(codes, capability) is expected


@pytest.mark.parametrize(("capability", "variant"), [((3, 7), "cu90"), ((7, 5), "cu112"), ((9, 0), None)])
def test_newest_mxnet_with_code_for_the_gpu_is_chosen(capability: Capability, variant: str | None) -> None:
    assert mxnet_variant(capability) == variant


@pytest.mark.parametrize(
    ("packages", "found", "reason"),
    [
        ({}, gpu(7, 0), f"MXNet is not installed; {MXNET}"),
        ({}, gpu(3, 7), f"MXNet is not installed; {OLD_MXNET}"),
        ({}, gpu(9, 0), f"MXNet is not installed; {TORCH}"),
        ({"mxnet": "1.9.1"}, gpu(9, 0), f"the installed mxnet is the CPU package; {TORCH}"),
        (
            {"mxnet_cu112": "1.9.1"},
            gpu(3, 7),
            "the installed mxnet-cu112 has code for sm_50, sm_60, sm_70, sm_80, sm_86, none of which runs on this GPU; "
            + OLD_MXNET,
        ),
        (
            {"mxnet_cu112": "1.9.1"},
            gpu(8, 0, (10, 1)),
            "the installed mxnet-cu112 is built with CUDA 11.2, but the NVIDIA driver supports CUDA up to 10.1, so "
            f"update the driver; {ON_CPU}",
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


def test_missing_torch_gives_the_package_that_drives_the_gpu(site: Path) -> None:
    for found, fix in ((gpu(9, 0), TORCH), (gpu(9, 0, (12, 2)), TORCH_2_10), (gpu(3, 7, (11, 4)), OLD_MXNET)):
        assert torch_reason(found) == f"PyTorch is not installed; {fix}"


@pytest.mark.parametrize(
    ("cuda", "codes", "found", "reason"),
    [
        ("13.0", CU130, gpu(9, 0), None),
        ("12.6", CU126, gpu(7, 0, (12, 2)), None),
        (None, (), gpu(9, 0), f"is a build for CPUs only; {TORCH}"),
        (
            "13.0",
            ("sm_75", "sm_80"),
            gpu(7, 0, (12, 8)),
            f"has code for sm_75, sm_80, none of which runs on this GPU; {TORCH_2_10}",
        ),
        (
            "13.0",
            CU130,
            gpu(9, 0, (12, 8)),
            "is built with CUDA 13.0, but the NVIDIA driver supports CUDA up to 12.8, so update the driver; "
            + TORCH_2_10,
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
