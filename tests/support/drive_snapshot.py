"""Take a snapshot of 64 MB, print the id of the process that writes it, and wait for standard input.

drive_snapshot.py FOLDER
"""

import json
import sys

import numpy as np
import psutil

from crossfade.kvstore.checkpoint.format import TableShard
from crossfade.kvstore.checkpoint.snapshot import Snapshot

ROWS = 1 << 18

if __name__ == "__main__":
    shard = TableShard("track", ROWS, 0, 1, {"weights": np.ones((ROWS, 64), np.float32)})
    snapshot = Snapshot(sys.argv[1], 0, 1, [shard])
    [writer] = psutil.Process().children()
    print(json.dumps(writer.pid), flush=True)
    sys.stdin.readline()
