"""Files and disks that cannot be used: pipes, devices, and a full disk."""

import os
from pathlib import Path

import pytest
from command_here import crossfade_here
from preparing import entries, prepare_files, write_text
from small_disk import MountError, mounted_disk

from crossfade.base.errors import CrossfadeError


def test_pipes_and_devices_are_rejected_at_once_wherever_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    write_text(tmp_path / "e.csv", "customer,item\n1,1\n")
    for words in (
        ("--events", "/dev/zero", "--format", "csv"),
        ("--events", "e.csv", "--names", "item=pipe.csv:a:b"),
        ("--events", "e.csv", "--features", "item=pipe.csv:a:b"),
    ):
        result = crossfade_here("prepare", *words, "--out", "data", cwd=tmp_path)
        assert result.returncode == 2
        assert "is a FIFO, socket, or device" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("kilobytes", "memory"), [(200, None), (3000, 0.03), (9000, 0.03)])
def test_full_disk_is_named_and_nothing_is_left(tmp_path: Path, kilobytes: int, memory: float | None) -> None:
    rows = "".join(f"customer-{n},item-{n % 50_000}-{'x' * 20}\n" for n in range(150_000))
    events = write_text(tmp_path / "e.csv", f"customer,item\n{rows}")
    try:
        with mounted_disk(tmp_path / "disk", kilobytes << 10) as disk:
            with pytest.raises(CrossfadeError) as caught:
                prepare_files(disk / "out", events, memory=memory)
            assert "make room, or name another disk with" in str(caught.value)
            assert str(disk) in str(caught.value)
            assert entries(disk) == []
    except MountError as error:
        pytest.skip(str(error))
