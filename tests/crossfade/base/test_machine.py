"""Memory limits of cgroups, as files have them."""

from pathlib import Path

import pytest

from crossfade.base.machine import available_bytes, cgroup_memory, limit_bytes

GIB = 1 << 30


def write_group(folder: Path, limit: int | str, used: int, *, version: int) -> None:
    """Write the files of a cgroup, of whose use a quarter caches files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    prefix = "total_" if version == 1 else ""
    (folder / "memory.stat").write_text(f"cache 7\n{prefix}inactive_file {used // 4}\n")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("path", ["", "slurm/job_7/step_0"])
def test_limits_of_own_cgroup_and_those_around_it_are_found(tmp_path: Path, version: int, path: str) -> None:
    top = tmp_path / "memory" if version == 1 else tmp_path
    write_group(top / path, 2 * GIB, GIB, version=version)
    expected = [(2 * GIB, GIB * 3 // 4)]
    if path:
        write_group(top / path / "..", 4 * GIB, 2 * GIB, version=version)
        write_group(top / path / ".." / "..", "max", GIB, version=2)
        expected.append((4 * GIB, 2 * GIB * 3 // 4))
    lines = {1: f"9:cpu:/other\n4:memory:/{path}\n0::/\n", 2: f"0::/{path}\n"}
    (tmp_path / "membership").write_text(lines[version])
    assert list(cgroup_memory(tmp_path / "membership", tmp_path)) == expected


@pytest.mark.parametrize("version", [1, 2])
def test_limit_of_a_container_that_sees_the_path_of_the_host_is_found(tmp_path: Path, version: int) -> None:
    write_group(tmp_path / "memory" if version == 1 else tmp_path, GIB, 0, version=version)
    path = "/docker/0123"
    (tmp_path / "membership").write_text(f"4:memory:{path}\n" if version == 1 else f"0::{path}\n")
    assert list(cgroup_memory(tmp_path / "membership", tmp_path)) == [(GIB, 0)]


def test_machine_without_cgroups_has_no_limits(tmp_path: Path) -> None:
    assert list(cgroup_memory(tmp_path / "membership", tmp_path)) == []


def test_available_memory_is_no_more_than_the_limit() -> None:
    assert 0 <= available_bytes() <= limit_bytes()
