"""``python -m crossfade``: the same as the command ``crossfade``."""

import sys

from crossfade.main import main

if __name__ == "__main__":
    sys.exit(main())
