"""Run ``crossfade`` commands, each when a line with its arguments in JSON comes on standard input.

The start of Python and the imports do not stand between commands of two such processes that are to run at once. After
each command, a line with exit code, standard output, and standard error in JSON is printed.
"""

import json
import sys

import pyarrow.parquet  # noqa: F401
from command_here import crossfade_here

import crossfade.trainer.prepare.forget
import crossfade.trainer.prepare.pipeline  # noqa: F401


def main() -> None:
    """Run the commands."""
    print("ready", flush=True)
    for line in sys.stdin:
        result = crossfade_here(*json.loads(line))
        print(json.dumps([result.returncode, result.stdout, result.stderr]), flush=True)


if __name__ == "__main__":
    main()
