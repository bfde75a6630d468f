"""Run the command line with ``python -m crossfade``."""

import sys

from crossfade.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
