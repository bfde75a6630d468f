"""Memory that preparing takes for a huge row group."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

_REPORT_MEMORY = """
import sys
from crossfade.cli.main import main
code = main(sys.argv[1:])
print(open("/proc/self/status").read())
sys.exit(code)
"""


@pytest.mark.slow
def test_prepare_of_huge_row_group_stays_within_memory_option(tmp_path: Path) -> None:
    rows, raw = 6 << 20, tmp_path / "raw.parquet"
    table = pa.table({"customer": np.arange(rows) * 7 % 100_003, "track": np.arange(rows) * 11 % 10_007})
    pq.write_table(table, raw, row_group_size=rows)
    options = ("--events", raw, "--item", "track", "--memory", 0.15, "--out", tmp_path / "data")
    command = [sys.executable, "-c", _REPORT_MEMORY, "prepare", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert f"{rows:,} rows of 1 file" in done.stdout
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)[0]) << 10
    assert peak < 0.15 * 2**30 + 330e6, peak
