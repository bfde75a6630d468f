"""Packages of the image's variants, and training with the oldest MXNet among them, on the CPU."""

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

from crossfade.kvstore.arrays import FloatArray

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {"cpu": ("mxnet", "1.9.1"), "cu112": ("mxnet-cu112", "1.9.1"), "cu90": ("mxnet-cu90", "1.6.0.post0")}
CUDA_LIBRARIES = {
    *("libcublas.so.11", "libcudart.so.11.0", "libcudnn.so.8", "libcufft.so.10", "libcurand.so.10"),
    *("libcusolver.so.11", "libnccl.so.2", "libnvrtc.so.11.2", "libnvToolsExt.so.1"),
}
"""Libraries that libmxnet.so of mxnet-cu112 links, except those of its wheel, the driver and the system."""
DOWNLOAD_SECONDS = 900


def pins(path: Path) -> dict[str, str]:
    """Return the version of each package of a lock file by name; each must have hashes."""
    versions = {}
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            assert hashes, requirement
            parsed = Requirement(requirement)
            if re.search(r'python_full_version >= "3\.1[2-9]"', str(parsed.marker)):
                continue  # images have Python 3.11
            versions[canonicalize_name(parsed.name)] = next(iter(parsed.specifier)).version
    return versions


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_has_the_tested_versions_and_no_development_tools(variant: str) -> None:
    lock = ROOT / "docker" / f"requirements-{variant}.lock"
    image, tested = pins(lock), pins(ROOT / "requirements.lock")
    name, version = VARIANTS[variant]
    assert image.pop(name) == version
    assert "://" not in lock.read_text(encoding="utf-8")
    assert not {"pytest", "moto", "mypy", "ruff", "uv", "playwright"} & set(image)
    for package in image:
        if not package.startswith("nvidia-"):
            assert image[package] == tested[package], f"{package}: run `make lock`"


@pytest.mark.docker
@pytest.mark.parametrize("variant", ["cu112", "cu90"])
def test_gpu_variant_packages_are_available_with_the_libraries_of_mxnet(variant: str, tmp_path: Path) -> None:
    lock = ROOT / "docker" / f"requirements-{variant}.lock"
    options = ("--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(tmp_path), "--requirement", str(lock)]
    subprocess.run(command, check=True, timeout=DOWNLOAD_SECONDS)
    wheels = {re.split(r"-\d", wheel.name)[0].replace("_", "-").lower(): wheel for wheel in tmp_path.iterdir()}
    assert set(wheels) == set(pins(lock))
    if variant == "cu112":
        files = [name for wheel in wheels.values() for name in zipfile.ZipFile(wheel).namelist()]
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
