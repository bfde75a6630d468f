"""A host with everything broken, by mounts, limits, and namespaces of a separate process; and checks one by one."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from cluster_data import write_job
from memory_cgroup import memory_cgroup
from needs import root

from crossfade.deploy.doctor import host_checks
from crossfade.deploy.doctor.findings import run_check

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 6 * 2**30
BROKEN = """
set -e
libraries=$(dirname "$(realpath "$(ldconfig -p | awk '/libgomp.so.1 .*x86-64/ {print $NF; exit}')")")
mkdir "$0/real" "$0/links"
mount --bind "$libraries" "$0/real"
ln -s "$0"/real/* "$0/links/"
rm "$0"/links/libgomp.so.1*
mount --bind "$0/links" "$libraries"
echo 'always madvise [never]' > "$0/never"
mount --bind "$0/never" /sys/kernel/mm/transparent_hugepage/enabled
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
mount -t tmpfs -o size=64k tmpfs "$2"
shift 2
exec "$@"
"""
"""Hide libgomp, disable huge pages, make $1 read-only, and mount a tiny disk at $2, for the command that follows."""


def examine(
    *arguments: object, within: Sequence[object] = (), variables: Mapping[str, object] | None = None
) -> tuple[int, dict[str, dict[str, str]]]:
    """Run the command in a separate process; return its exit code, and what it found by check."""
    command = [*within, sys.executable, "-m", "crossfade", "doctor", "--json", *arguments]
    environment = os.environ | {name: str(value) for name, value in (variables or {}).items()}
    result = subprocess.run(
        list(map(str, command)), env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=300
    )
    assert result.stderr == ""
    return result.returncode, {finding["check"]: finding for finding in json.loads(result.stdout)}


@pytest.mark.slow
def test_every_fault_of_a_host_is_found_at_once(tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "--net", "true"], check=False).returncode:
        pytest.skip(root("mounts and network namespaces"))
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    job = write_job(tmp_path / "job.yaml", tmp_path / "data", cluster={"servers": 1})
    cache = ROOT / "crossfade"  # a folder that the script makes read-only
    code, found = examine(
        job,
        within=[
            *("unshare", "--mount", "--net", "prlimit", "--nofile=200"),
            *("sh", "-c", BROKEN, tmp_path / "work", ROOT, tmp_path / "temporary"),
        ],
        variables={
            "NUMBA_CACHE_DIR": cache,
            "XDG_CACHE_HOME": cache,
            "HOME": cache,
            "TMPDIR": tmp_path / "temporary",
            "PYTHONDONTWRITEBYTECODE": 1,
        },
    )
    assert code == 1
    of_job = ("run", "checkpoints", "data", "memory", "disk", "ports", "leftovers")  # checked without kernels, too
    assert {name: finding["state"] for name, finding in found.items() if name not in of_job} == {
        "python": "ok",
        "packages": "ok",
        "memory limit": found["memory limit"]["state"],
        "gpu": "ok",
        "huge pages": "warning",
        "mxnet": "fix",
        "kernels": "fix",
        "loopback": "fix",
        "open files": "fix",
        "temporary": "fix",
    }
    assert set(of_job) < set(found)
    assert "libgomp.so.1: cannot open shared object file" in found["mxnet"]["message"]
    assert "; apt-get install libgomp1, or" in found["mxnet"]["message"]
    assert "libquadmath0," not in found["mxnet"]["message"]
    assert "set NUMBA_CACHE_DIR" in found["kernels"]["message"]
    assert "ip link set lo up" in found["loopback"]["message"]
    assert "echo madvise > /sys/kernel" in found["huge pages"]["message"]
    assert "ulimit -n 268" in found["open files"]["message"]
    assert "set TMPDIR" in found["temporary"]["message"]


@pytest.mark.slow
def test_limit_of_a_control_group_is_found() -> None:
    code = "from crossfade.deploy.doctor.host_checks import check_memory_limit; print(*check_memory_limit())"
    with memory_cgroup() as cgroup:
        cgroup.limit_to(LIMIT)
        command = [*cgroup.within, sys.executable, "-c", code]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "state='ok', message='6.44 GB, of the " in found


def test_mxnet_whose_import_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mxnet.py").write_text("import time\nwhile True:\n    time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    [found] = run_check("mxnet", lambda: host_checks.check_mxnet(needed=True, seconds=1), 1)
    assert (found.state, found.message.partition(";")[0]) == ("fix", "did not end within 1 s")


def test_mxnet_that_ends_the_process_is_to_be_fixed_only_if_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mxnet.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    for needed, state in ((True, "fix"), (False, "warning")):
        [found] = host_checks.check_mxnet(needed=needed, seconds=60)
        assert (found.state, found.message.partition(";")[0]) == (state, "importing it ended with signal 4")


def test_cache_that_was_chosen_but_is_not_used_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    [found] = host_checks.check_kernel_cache(seconds=60)
    assert found.state == "warning"
    assert found.message.startswith(f"NUMBA_CACHE_DIR={tmp_path}/file cannot be written, ")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "folder"))
    [found] = host_checks.check_kernel_cache(seconds=60)
    assert found.state == "ok"
    assert str(tmp_path / "folder") in found.message


def test_large_job_needs_more_open_files_than_a_process_may_have() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        states = [next(host_checks.check_open_files(roles)).state for roles in (9, 192, 193)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert states == ["ok", "ok", "fix"]


def test_temporary_folder_that_is_not_used_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    [found] = host_checks.check_temporary_files()
    assert (found.state, found.message.partition(",")[0]) == ("warning", f"TMPDIR={tmp_path}/none cannot be written")
