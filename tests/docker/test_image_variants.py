"""Packages of the image's variants, and training with the oldest MXNet among them, on the CPU."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from chaos import embeddings_of
from cluster_data import write_job, write_planted
from lock_files import LOCK, ROOT, environment, pins
from packaging.utils import canonicalize_name
from run_results import vectors
from running_command import crossfade, started, succeeded, wait_for_steps

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
PLATFORMS = [
    *(("slim", python, machine) for python in ("3.11", "3.12", "3.13") for machine in ("x86_64", "aarch64")),
    *((variant, "3.11", "x86_64") for variant in ("torch", "cu112", "cu90")),
]
"""Variants with the Python versions and processors that their packages are for."""
DOWNLOAD_SECONDS = 900


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_has_the_tested_versions_and_no_development_tools(variant: str) -> None:
    lock = ROOT / "docker" / f"requirements-{variant}.lock"
    image, tested = pins(lock), pins(LOCK)
    assert VARIANTS[variant].items() <= image.items()
    assert "://" not in lock.read_text(encoding="utf-8")
    assert not {"pytest", "moto", "mypy", "ruff", "uv", "playwright"} & set(image)
    others = {name for name in image if name not in tested and not name.startswith("nvidia-")}
    assert others == {"torch": WITH_PYTORCH, "cpu": set()}.get(variant, set(VARIANTS[variant]))
    for package in set(image) & set(tested):
        assert image[package] == tested[package], f"{package}: run `make lock`"


@pytest.mark.docker
@pytest.mark.parametrize(("variant", "python", "machine"), PLATFORMS)
def test_variant_packages_are_available(variant: str, python: str, machine: str, tmp_path: Path) -> None:
    lock = ROOT / "docker" / f"requirements-{variant}.lock"
    platform = ("--python-version", python, "--python-platform", f"{machine}-manylinux_2_36", "--target", str(tmp_path))
    options = ("--dry-run", "--no-deps", "--require-hashes", "--only-binary", ":all:")
    command = [Path(sys.executable).with_name("uv"), "pip", "install", *options, *platform, "--requirement", str(lock)]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    installed = re.findall(r"^ \+ (\S+)==", found.stderr, re.MULTILINE)
    assert {canonicalize_name(name) for name in installed} == set(pins(lock, environment(python, machine)))


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
        older_ND, newer_ND = (vectors(tmp_path / run, entity) for run in ("older", "newer"))
        np.testing.assert_allclose(older_ND, newer_ND, atol=1e-4)
