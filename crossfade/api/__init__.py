"""The Python API: train on data frames, and use trained models, without the command line.

Messages go to the loggers under ``crossfade``. Without a handler of the program, Python would print warnings. That the
installed pandas cannot be imported is a warning of Python: pandas itself blames its build.
"""

import logging
import warnings

from crossfade.base.packages import pandas_conflict

logging.getLogger("crossfade").addHandler(logging.NullHandler())
if conflict := pandas_conflict():
    warnings.warn(conflict, stacklevel=2)
