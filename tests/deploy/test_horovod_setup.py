"""deploy/horovod.sh: what it passes to Horovod's build, with Gloo only and with NCCL; nothing is compiled."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from needs import COMPILER

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """\
#!/bin/sh
# Python and pip, which build a wheel that is empty.
for word; do
    case ${previous-} in --dest) dest=$word ;; --wheel-dir) wheels=$word ;; --target) mkdir "$word" ;; esac
    previous=$word
done
case "$*" in
    *importlib.metadata*) echo "$MXNET" ;;
    *"-m pip download"*) cp source.tar.gz "$dest/horovod-0.28.1.tar.gz" ;;
    *"-m pip wheel"*) env >built-with; mkdir "$wheels"; : >"$wheels/horovod-0.28.1-cp311.whl" ;;
    *horovod.mxnet*) printf '%s' "$previous" >checked ;;
esac
"""
GLOO = "void GlooContext::InitializeForProcessSet(x) {\n  iface = gloo_iface_;\n}\n"
"""The place in Horovod's source that the script patches."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with the real script and lock, and a CUDA toolkit."""
    for folder in ("deploy", ".venv/bin", "cuda/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("deploy/horovod.sh", "deploy/requirements-horovod.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name, text in ((".venv/bin/python", PYTHON), ("cuda/bin/nvcc", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with tarfile.open(tmp_path / "source.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("horovod-0.28.1/horovod/common/gloo/gloo_context.cc")
        member.size = len(GLOO)
        archive.addfile(member, io.BytesIO(GLOO.encode()))
    return tmp_path


def build(checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("g++") is None or shutil.which("make") is None:
        pytest.skip(COMPILER)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(checkout), "MXNET": "mxnet 1.9.1", **variables}
    script = ["sh", "deploy/horovod.sh"]
    return subprocess.run(script, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def built_with(checkout: Path) -> dict[str, str]:
    """Return Horovod's variables in the environment of its build."""
    pairs = (line.partition("=") for line in (checkout / "built-with").read_text().splitlines())
    return {name: value for name, _, value in pairs if name.startswith("HOROVOD_") and "WITHOUT" not in name}


ON_CPU = {"HOROVOD_WITH_MXNET": "1", "HOROVOD_WITH_GLOO": "1", "HOROVOD_CPU_OPERATIONS": "GLOO"}


def test_build_without_gpu_has_gloo_only(checkout: Path) -> None:
    result = build(checkout)
    assert (result.returncode, result.stderr) == (0, "")
    assert built_with(checkout) == ON_CPU
    assert (checkout / "checked").read_text() == "0", "NCCL is not required"


@pytest.mark.slow
def test_build_for_gpus_has_nccl_and_another_wheel(checkout: Path) -> None:
    gpu = {"HOROVOD_GPU": "1", "HOROVOD_CUDA_HOME": str(checkout / "cuda")}
    assert build(checkout).returncode == 0
    result = build(checkout, MXNET="mxnet-cu112 1.9.1", **gpu)
    assert (result.returncode, result.stderr) == (0, "")
    nccl = {"HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_NCCL_HOME": "/usr"}
    assert built_with(checkout) == {**ON_CPU, **gpu, **nccl}
    assert (checkout / "checked").read_text() == "1"
    assert len(list((checkout / ".cache" / "crossfade").iterdir())) == 2


def test_build_for_gpus_without_nvcc_is_rejected(checkout: Path) -> None:
    result = build(checkout, HOROVOD_GPU="1", HOROVOD_CUDA_HOME="/nowhere")
    assert result.returncode == 2
    assert result.stderr.startswith("horovod: missing: /nowhere/bin/nvcc, which HOROVOD_GPU=1 needs: install")


def test_environment_without_mxnet_is_rejected(checkout: Path) -> None:
    result = build(checkout, MXNET="")
    assert (result.returncode, "there is no MXNet in .venv" in result.stderr) == (2, True)
