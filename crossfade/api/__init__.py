"""The Python API: train on data frames, and use trained models, without the command line.

Messages go to the loggers under ``crossfade``. Without a handler of the program, Python would print warnings.
"""

import logging

logging.getLogger("crossfade").addHandler(logging.NullHandler())
