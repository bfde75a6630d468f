"""A process that takes a snapshot of 64 MB, says on a line which processes write it, and waits for its standard input.

drive_snapshot.py FOLDER
"""

import atexit
import json
import sys

import numpy as np
import psutil
from saved_ranges import written

from kvstore.checkpoint import RowRange
from kvstore.snapshot import Snapshot

ROWS = 1 << 18


def main() -> None:
    """Be that process."""
    atexit.register(print, "tidied up")
    weights_ND = np.ones((ROWS, 64), np.float32)
    print(f"{'kept in a buffer':4096}", end="")
    snapshot = Snapshot(sys.argv[1], 0, 1, [RowRange("track", ROWS, 0, 1, {"weights": weights_ND})])
    weights_ND[:] = 2.0
    print(json.dumps([child.pid for child in psutil.Process().children()]), file=sys.stderr, flush=True)
    sys.stdin.readline()
    written(snapshot)


if __name__ == "__main__":
    main()
