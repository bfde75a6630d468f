"""Memory limits of cgroups, as files have them."""

from pathlib import Path

from crossfade.base.machine import cgroup_memory

GIB = 1 << 30


def write_group(folder: Path, limit: int | str, used: int) -> None:
    """Write the files of a cgroup, of whose use a quarter caches files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 7\ninactive_file {used // 4}\n")


def test_limits_of_own_cgroup_and_those_around_it_are_found(tmp_path: Path) -> None:
    own = tmp_path / "slurm" / "job_7" / "step_0"
    write_group(own, 2 * GIB, GIB)
    write_group(own.parent, 4 * GIB, 2 * GIB)
    write_group(own.parents[1], "max", GIB)
    (tmp_path / "membership").write_text("9:cpu:/other\n0::/slurm/job_7/step_0\n")
    assert list(cgroup_memory(tmp_path / "membership", tmp_path)) == [
        (2 * GIB, GIB * 3 // 4),
        (4 * GIB, 2 * GIB * 3 // 4),
    ]


def test_limit_of_a_container_that_sees_the_path_of_the_host_is_found(tmp_path: Path) -> None:
    write_group(tmp_path, GIB, 0)
    (tmp_path / "membership").write_text("0::/docker/0123\n")
    assert list(cgroup_memory(tmp_path / "membership", tmp_path)) == [(GIB, 0)]
