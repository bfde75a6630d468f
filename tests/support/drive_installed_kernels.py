"""Run commands in a process whose installed kernels are those in a file, and print what it compiled.

    drive_installed_kernels.py FILE precompile | train JOB

As the last line, print the kernels that had to be compiled from Python, and how many were loaded, as JSON.
"""

import json
import sys
from pathlib import Path

from crossfade import precompile
from crossfade.cli.main import main
from crossfade.kvstore import portable_kernels
from crossfade.kvstore.jit import KERNELS

portable_kernels.FILE = Path(sys.argv[1])
if sys.argv[2] == "precompile":
    precompile.main(["defaults"])
else:
    assert main([*sys.argv[2:], "--run-dir", "run"]) == 0
    assert main(["recommend", "run", "--customer", "c007"]) == 0
    assert main(["similar", "run", "5007"]) == 0
compiled = [kernel.__name__ for kernel in KERNELS if kernel.stats.cache_misses]
print(json.dumps({"compiled": compiled, "loaded": sum(sum(kernel.stats.cache_hits.values()) for kernel in KERNELS)}))
