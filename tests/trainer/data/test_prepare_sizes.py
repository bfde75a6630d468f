"""Memory that preparing and validating take for huge row groups and for many files."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest, Entity, Split
from crossfade.trainer.data.parquet import file_entry

_REPORT_MEMORY = """
import sys
from crossfade.cli.main import main
code = main(sys.argv[1:])
print(open("/proc/self/status").read())
sys.exit(code)
"""


def measured(*arguments: object) -> tuple[str, int]:
    """Run ``crossfade``; return its output and its peak memory in bytes."""
    command = [sys.executable, "-c", _REPORT_MEMORY, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout, int(re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)[0]) << 10


def write_in_one_group(path: Path, **columns: object) -> None:
    """Write a Parquet file of a single row group."""
    path.parent.mkdir(parents=True)
    table = pa.table(columns)
    pq.write_table(table, path, row_group_size=max(1, table.num_rows))
    assert pq.read_metadata(path).num_row_groups == 1


@pytest.mark.slow
def test_validate_memory_does_not_grow_with_row_group_size(tmp_path: Path) -> None:
    peaks = []
    for rows in (1 << 20, 8 << 20):
        folder = tmp_path / str(rows)
        customers, tracks = np.arange(rows) % 1000, np.arange(rows) % 700
        shard = folder / "train" / "all.parquet"
        write_in_one_group(shard, customer=customers, track=tracks, weight=np.ones(rows, np.float32))
        train = Split(files=[file_entry(Folder(folder), "train/all.parquet")])
        entities = {}
        for name, row_N in (("customer", customers), ("track", tracks)):
            count_N = np.bincount(row_N)
            row_V = np.arange(len(count_N))
            path = f"vocabulary/{name}/all.parquet"
            write_in_one_group(folder / path, row=row_V, id=row_V, count=count_N)
            entities[name] = Entity(rows=len(row_V), id_type="int64", files=[file_entry(Folder(folder), path)])
        manifest = DatasetManifest(query="customer", item="track", entities=entities, splits={"train": train})
        manifest.write(Folder(folder))
        output, peak = measured("validate", folder, "--memory", 0.1)
        assert "no problem" in output
        peaks.append(peak)
    # Decoded, the large one has 140 MB more, and its intermediate results several times that.
    assert peaks[1] - peaks[0] < 100e6, peaks


@pytest.mark.slow
def test_prepare_of_huge_row_group_stays_within_memory_option(tmp_path: Path) -> None:
    rows = 6 << 20
    raw = tmp_path / "raw" / "all.parquet"
    write_in_one_group(raw, customer=np.arange(rows) * 7 % 100_003, track=np.arange(rows) * 11 % 10_007)
    output, peak = measured("prepare", "--events", raw, "--item", "track", "--memory", 0.15, "--out", tmp_path / "data")
    assert f"{rows:,} rows of 1 file" in output
    assert peak < 0.15 * 2**30 + 330e6, peak
