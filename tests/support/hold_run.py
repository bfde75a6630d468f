"""Hold the lock of a run folder until it is lost: ``python hold_run.py RUN_DIR JOB``.

Prints ``held``, and why once another command has taken the run over.
"""

import sys
import time
from pathlib import Path

from crossfade.base.errors import InputError
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.runs.run_folder import RunFolder

folder = RunFolder(Path(sys.argv[1]))
try:
    with folder.open_run(load_job(Path(sys.argv[2]))):
        print("held", flush=True)
        while True:
            folder.lock.check_owned()
            time.sleep(0.05)
except InputError as error:
    print(error, flush=True)
