"""Run commands in a process whose installed kernels are those in a file, and print what it compiled.

    drive_installed_kernels.py FILE precompile | train JOB

As the last line, print as JSON the kernels that had to be compiled from Python, how many were loaded, and which of the
packages that only compiling and preparing use a training has imported.
"""

import json
import sys
from pathlib import Path

from crossfade.cli.main import main
from crossfade.kvstore import portable_kernels
from crossfade.kvstore.jit import KERNELS

portable_kernels.FILE = Path(sys.argv[1])
imported = set()
if sys.argv[2] == "precompile":
    from crossfade import precompile

    precompile.main(["defaults"])
else:
    assert main([*sys.argv[2:], "--run-dir", "run"]) == 0
    imported = {"cffi", "duckdb", "numba.np.arraymath", "crossfade.deploy.cluster.messages"} & set(sys.modules)
    assert main(["recommend", "run", "--customer", "c007"]) == 0
    assert main(["similar", "run", "5007"]) == 0
compiled = [kernel.__name__ for kernel in KERNELS if kernel.stats.cache_misses]
loaded = sum(sum(kernel.stats.cache_hits.values()) for kernel in KERNELS)
print(json.dumps({"compiled": compiled, "loaded": loaded, "imported": sorted(imported)}))
