"""A process that takes a snapshot of 64 MB, says which process writes it, and waits for its standard input.

drive_snapshot.py FOLDER
"""

import json
import sys

import numpy as np
import psutil

from kvstore.checkpoint.format import TableShard
from kvstore.checkpoint.snapshot import Snapshot

ROWS = 1 << 18

if __name__ == "__main__":
    held = TableShard("track", ROWS, 0, 1, {"weights": np.ones((ROWS, 64), np.float32)})
    snapshot = Snapshot(sys.argv[1], 0, 1, [held])
    [writer] = psutil.Process().children()
    print(json.dumps(writer.pid), flush=True)
    sys.stdin.readline()
