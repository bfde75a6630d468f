"""The phases of a worker's time, in the order in which they are shown; imports nothing."""

STEP_PHASES = ("data", "sample", "pull", "gradients", "push")
PHASES = (*STEP_PHASES, "sync", "evaluate", "save")
