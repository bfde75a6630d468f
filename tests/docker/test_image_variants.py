"""Packages of the image's variants, and training with the oldest MXNet among them, on the CPU."""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from chaos import embeddings_of
from cluster_data import write_job, write_planted
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from running_command import crossfade, started, succeeded, wait_for_steps

from crossfade.base.arrays import FloatArray
from crossfade.trainer.model.engines.gpu_code import TORCH_WHEELS

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {
    "cpu": {"mxnet": "1.9.1"},
    "slim": {},
    "torch": {"mxnet": "1.9.1", "torch": "2.13.0"},
    "cu112": {"mxnet-cu112": "1.9.1"},
    "cu90": {"mxnet-cu90": "1.6.0.post0"},
}
"""The packages of each variant that compute."""
WITH_PYTORCH = {"cuda-bindings", "cuda-pathfinder", "cuda-toolkit", "filelock", "torch", "triton"}
"""Packages that only variant torch has, apart from NVIDIA's."""
CUDA_LIBRARIES = {
    *("libcublas.so.11", "libcudart.so.11.0", "libcudnn.so.8", "libcufft.so.10", "libcurand.so.10"),
    *("libcusolver.so.11", "libnccl.so.2", "libnvrtc.so.11.2", "libnvToolsExt.so.1"),
}
"""Libraries that libmxnet.so of mxnet-cu112 links, except those of its wheel, the driver and the system."""
TORCH_LIBRARIES = {
    *("libcublas.so.13", "libcublasLt.so.13", "libcudart.so.13", "libcudnn.so.9", "libcufft.so.12", "libcufile.so.0"),
    *("libcurand.so.10", "libcusolver.so.12", "libcusparse.so.12", "libcusparseLt.so.0", "libnccl.so.2"),
    *("libnvrtc.so.13", "libnvshmem_host.so.3"),
}
"""Libraries that those of PyTorch link, except those of its wheel, the driver and the system."""
PLATFORMS = [
    *(("slim", python, machine) for python in ("3.11", "3.12", "3.13") for machine in ("x86_64", "aarch64")),
    *((variant, "3.11", "x86_64") for variant in ("torch", "cu112", "cu90")),
]
"""Variants with the Python versions and processors that their packages are for."""
DOWNLOAD_SECONDS = 900
CHECKED = {"torch": "7abda91602fd56e4", "cu112": "ba8e8b6dae486f11", "cu90": "ed815ceb881ee1a1"}
"""For each lock file, ``digest_of_libraries`` of the packages, up to 3 GB, that have been downloaded and checked."""
_LIBRARIES = re.compile(r"(?:cuda|mxnet|nvidia|torch|triton)\b")


def pins(path: Path, python: str = "3.11", machine: str = "x86_64") -> dict[str, str]:
    """Return the version of each package that a lock file has for Linux, by name; each must have hashes."""
    environment = {"sys_platform": "linux", "platform_machine": machine, "python_full_version": f"{python}.0"}
    versions = {}
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            assert hashes, requirement
            parsed = Requirement(requirement)
            if parsed.marker is not None and not parsed.marker.evaluate(environment):
                continue
            versions[canonicalize_name(parsed.name)] = next(iter(parsed.specifier)).version
    return versions


def digest_of_libraries(lock: Path) -> str:
    """Return a digest of the versions and hashes of the packages with libraries for GPUs."""
    lines = lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    found = "\n".join(" ".join(line.split()) for line in lines if _LIBRARIES.match(line))
    return hashlib.sha256(found.encode()).hexdigest()[:16]


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_has_the_tested_versions_and_no_development_tools(variant: str) -> None:
    lock = ROOT / "docker" / f"requirements-{variant}.lock"
    image, tested = pins(lock), pins(ROOT / "requirements.lock")
    assert VARIANTS[variant].items() <= image.items()
    assert "://" not in lock.read_text(encoding="utf-8")
    assert not {"pytest", "moto", "mypy", "ruff", "uv", "playwright"} & set(image)
    others = {name for name in image if name not in tested and not name.startswith("nvidia-")}
    assert others == {"torch": WITH_PYTORCH, "cpu": set()}.get(variant, set(VARIANTS[variant]))
    for package in set(image) & set(tested):
        assert image[package] == tested[package], f"{package}: run `make lock`"


def test_slim_needs_neither_mxnet_nor_pytorch_on_any_python_and_processor() -> None:
    lock = ROOT / "docker" / "requirements-slim.lock"
    for python in ("3.11", "3.12", "3.13"):
        image = pins(lock, python, "aarch64")
        assert image == pins(lock, python, "x86_64")
        assert {"numba", "numpy", "pyarrow", "boto3", "dash", "fastapi"} <= set(image)
        assert not [name for name in image if re.match("mxnet|torch|triton|nvidia|horovod", name)]


def test_variant_torch_has_the_cuda_version_that_its_gpus_are_listed_for() -> None:
    image = pins(ROOT / "docker" / "requirements-torch.lock")
    assert tuple(map(int, image["cuda-toolkit"].split(".")[:2])) == TORCH_WHEELS[0].cuda_version
    assert image["nvidia-cuda-runtime"].startswith("13.0.")
    assert image["numpy"].startswith("1.26."), "MXNet needs numpy 1"


def run_path(wheel: Path, name: str, folder: Path) -> set[str]:
    """Return the folders in which a library of ``wheel`` looks for those that it links."""
    library = zipfile.ZipFile(wheel).extract(name, folder / "extracted")
    read = subprocess.run(["readelf", "--dynamic", library], check=True, capture_output=True, text=True)
    [found] = re.findall(r"\((?:RPATH|RUNPATH)\) .*\[(.*)\]", read.stdout)
    return set(found.split(":"))


@pytest.mark.docker
@pytest.mark.parametrize(("variant", "python", "machine"), PLATFORMS)
def test_variant_packages_are_available(variant: str, python: str, machine: str, tmp_path: Path) -> None:
    lock = ROOT / "docker" / f"requirements-{variant}.lock"
    platform = ("--python-version", python, "--python-platform", f"{machine}-manylinux_2_36", "--target", str(tmp_path))
    options = ("--dry-run", "--no-deps", "--require-hashes", "--only-binary", ":all:")
    command = [Path(sys.executable).with_name("uv"), "pip", "install", *options, *platform, "--requirement", str(lock)]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    installed = re.findall(r"^ \+ (\S+)==", found.stderr, re.MULTILINE)
    assert {canonicalize_name(name) for name in installed} == set(pins(lock, python, machine))


@pytest.mark.docker
@pytest.mark.parametrize("variant", CHECKED)
def test_gpu_variant_has_its_hashes_and_the_libraries_that_its_packages_link(variant: str, tmp_path: Path) -> None:
    lock = ROOT / "docker" / f"requirements-{variant}.lock"
    if digest_of_libraries(lock) == CHECKED[variant]:
        pytest.skip(f"checked for these packages of {lock.name} before; CHECKED has their hash")
    options = ("--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(tmp_path), "--requirement", str(lock)]
    subprocess.run(command, check=True, timeout=DOWNLOAD_SECONDS)
    wheels = {re.split(r"-\d", wheel.name)[0].replace("_", "-").lower(): wheel for wheel in tmp_path.iterdir()}
    assert set(wheels) == set(pins(lock))
    files = [name for wheel in wheels.values() for name in zipfile.ZipFile(wheel).namelist()]
    if variant == "torch":
        searched = run_path(wheels["torch"], "torch/lib/libc10_cuda.so", tmp_path)
        for library in TORCH_LIBRARIES:
            folders = {str(Path(name).parent) for name in files if Path(name).name == library}
            assert {f"$ORIGIN/../../{folder}" for folder in folders} & searched, (library, folders, searched)
    if variant == "cu112":
        dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
        for library in CUDA_LIBRARIES:
            folders = {str(Path(name).parent) for name in files if Path(name).name == library}
            assert any(f"$PACKAGES/{folder}" in dockerfile for folder in folders), (library, folders)
    for wheel in wheels.values():
        wheel.unlink()


def vectors(folder: Path) -> FloatArray:
    """Return all vectors of an entity, float32 (N, D)."""
    stacked: FloatArray = np.stack(pq.read_table(folder).column("vector").to_numpy())
    return stacked


@pytest.fixture(scope="module")
def older_mxnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the CPU build of mxnet-cu90's release into a folder, which PYTHONPATH puts before the installed MXNet."""
    folder = tmp_path_factory.mktemp("mxnet")
    options = ("--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(folder))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "mxnet-mkl==1.6.0"], check=True, timeout=DOWNLOAD_SECONDS
    )
    return folder


@pytest.mark.docker
@pytest.mark.parametrize("engine", ["cpu", "mxnet"])
def test_mxnet_for_the_k80_trains_saves_and_resumes_like_the_newer_release(
    older_mxnet: Path, tmp_path: Path, engine: str
) -> None:
    train = {"epochs": 6, "batch_size": 256, "engine": engine, "patience": None}
    job = write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"), train=train)
    cluster = ("--servers", 2, "--workers", 2, "--set", "checkpoint.interval_steps=5")
    succeeded(crossfade("train", job, *cluster, "--run-dir", "newer", cwd=tmp_path))
    older = {"PYTHONPATH": str(older_mxnet)}
    with started("train", job, *cluster, "--run-dir", "older", cwd=tmp_path, variables=older) as command:
        wait_for_steps(command, tmp_path / "older")
        command.roles()["server-1"].kill()
        succeeded(command.finish())
    report = json.loads((tmp_path / "older" / "report.json").read_text())
    assert report["versions"]["mxnet"] == "1.6.0"
    assert report["restarts"] == 1
    # Crossfade's own kernels give the same bits; MXNet's differ between its releases.
    if engine == "cpu":
        assert embeddings_of(tmp_path / "older") == embeddings_of(tmp_path / "newer")
    for entity in ("customer", "track"):
        older_ND, newer_ND = (vectors(tmp_path / run / "embeddings" / entity) for run in ("older", "newer"))
        np.testing.assert_allclose(older_ND, newer_ND, atol=1e-4)
