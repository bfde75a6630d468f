"""Which packages have code for a GPU, and whether the installed ones can drive it."""

import sys
from pathlib import Path

import pytest

from crossfade.trainer.model.engines.cuda_driver import Capability, GpuInfo
from crossfade.trainer.model.engines.gpu_code import (
    has_code,
    mxnet_reason,
    torch_reason,
)

CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
"""What ``torch.cuda.get_arch_list()`` returns in PyTorch 2.13.0 with CUDA 13.0."""

TORCH = "pip install 'crossfade[torch]'"
MXNET, OLD_MXNET = "pip install 'mxnet-cu112==1.9.1'", "pip install 'mxnet-cu90==1.6.0.post0'"


def gpu(major: int, minor: int) -> GpuInfo:
    return GpuInfo(0, "NVIDIA GPU", (major, minor), 16 << 30)


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


@pytest.mark.parametrize(
    ("codes", "capability", "expected"),
    [
        (CU130, (7, 5), True),
        (CU130, (8, 9), True),
        (CU130, (7, 0), False),
        (CU130, (13, 0), True),
        (CU130[:-1], (13, 0), False),
        (("sm_86",), (8, 0), False),
        (("sm_100a", "gfx90a"), (10, 3), False),
        ((), (9, 0), False),
    ],
)
def test_code_runs_on_gpus_of_its_major_capability_and_ptx_on_newer_ones(
    codes: tuple[str, ...], capability: Capability, expected: bool
) -> None:
    assert has_code(codes, capability) is expected


@pytest.mark.parametrize(
    ("packages", "found", "reason"),
    [
        ({}, gpu(7, 0), f"MXNet is not installed; {MXNET}"),
        ({}, gpu(9, 0), f"MXNet is not installed; {TORCH}"),
        ({"mxnet": "1.9.1"}, gpu(9, 0), f"the installed mxnet is the CPU package; {TORCH}"),
        (
            {"mxnet_cu112": "1.9.1"},
            gpu(3, 7),
            "the installed mxnet-cu112 has code for sm_50, sm_60, sm_70, sm_80, sm_86, none of which runs on this GPU; "
            + OLD_MXNET,
        ),
        ({"mxnet_cu112": "1.9.1"}, gpu(7, 5), None),
        ({"mxnet_cu90": "1.6.0.post0"}, gpu(3, 7), None),
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
    for found, fix in ((gpu(9, 0), TORCH), (gpu(3, 7), OLD_MXNET), (gpu(3, 0), OLD_MXNET), (gpu(2, 0), "train.device")):
        assert fix in (torch_reason(found) or "")
