"""Exit codes of runs that end before their job does. Those of errors are attributes of their classes."""

INTERRUPTED_EXIT_CODE = 75
"""Exit code of a run whose host is reclaimed, to be resumed elsewhere: EX_TEMPFAIL of sysexits.h."""
STOPPED_EXIT_CODE = 143
"""Exit code of a run that was stopped by SIGTERM."""
